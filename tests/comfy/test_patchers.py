"""Memory: what ComfyUI counts, moves and offloads of packed weights, with and without its dynamic VRAM."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


def packed_weights(model):
    from comfyui_hlwq.nodes.running import patchers

    return [module.weight for _, module in patchers.packed_modules(model)]


def mapped_file(tensor: torch.Tensor) -> str:
    """The file whose mapping a tensor's bytes lie in; "" for memory of its own."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, path = line.split(maxsplit=5) if len(line.split()) > 5 else (*line.split(), "")
        start, stop = (int(end, 16) for end in span.split("-"))
        if start <= tensor.data_ptr() < stop:
            return path
    return ""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is mapped")
def test_weights_stay_packed_views_of_the_files(load, sample):
    """Also after sampling: nothing was unpacked or copied into memory of its own."""
    model = load()[0]
    sample(model, steps=1)
    weights = packed_weights(model)
    assert len(weights) == 2 * 28 + 2
    for weight in weights:
        codes, norms = weight._qdata, weight._params.scale
        assert codes.dtype == torch.uint8 and norms.dtype == torch.float16
        assert codes.numel() * 8 == norms.numel() * 128 * 5
        assert mapped_file(codes).endswith("_codes.safetensors") and mapped_file(norms).endswith("_codes.safetensors")


def test_codes_and_norms_are_counted(load):
    model = load()[0]
    packed = sum(weight._qdata.nbytes + weight._params.scale.nbytes for weight in packed_weights(model))
    assert sum(weight.nbytes for weight in packed_weights(model)) == packed
    plain = sum(value.nbytes for value in model.model.state_dict().values() if not hasattr(value, "_qdata"))
    assert model.model_size() == packed + plain


def test_sampling_leaves_no_scratch(load, sample):
    from comfyui_hlwq.hlwq_core.running import scratch

    sample(load()[0], steps=1)
    assert scratch.nbytes(torch.device("cpu")) == 0


def test_scratch_is_the_largest_layer(load):
    from comfyui_hlwq.hlwq_core.running import scratch

    model = load()[0]
    scratch.release()
    with torch.inference_mode():
        for weight in packed_weights(model):
            scratch.view(*weight.shape, torch.bfloat16, torch.device("cpu"))
    largest = max(weight.numel() * 2 for weight in packed_weights(model))
    assert scratch.nbytes(torch.device("cpu")) == largest
    scratch.release()


def test_gradients_do_not_use_the_scratch(load):
    """Training a LoRA beside the model: autograd keeps the weight, so it must not be overwritten."""
    block = load()[0].model.diffusion_model.transformer_blocks[0]
    first, second = block.attn1.to_q, block.attn1.to_k
    x = torch.randn(2, first.in_features, requires_grad=True)
    y = first(x)
    second(torch.randn(2, second.in_features))
    y.sum().backward()
    assert torch.allclose(x.grad, first.weight.dequantize().float().sum(0).expand(2, -1), rtol=1e-2, atol=1e-2)


def test_partial_loading_and_unloading(load, sample, distance):
    """The plain patcher with less memory than the model needs (--lowvram): some layers offloaded, same result."""
    import comfy.model_management

    model = load()[0]
    whole = sample(model, steps=1)
    comfy.model_management.unload_all_models()
    with torch.inference_mode():
        part = model.clone()
        part.partially_load(torch.device("cpu"), part.model_size() // 3)
        assert model.model.model_lowvram
        freed = part.partially_unload(torch.device("cpu"), part.model_size() // 6)
        assert freed > 0
        part.detach()
    assert distance(sample(part, steps=1), whole) < 1e-6


def test_unloading_where_the_model_is_copies_nothing(load):
    """On a CPU the weights are the mapped files': /free, outside of inference mode, must not make memory of them."""
    from comfyui_hlwq.hlwq_core.running.packed_tensor import is_packed

    def places(model):
        return {name: value.data_ptr() for name, value in model.named_parameters() if not is_packed(value)}

    model = load()[0].model
    before = places(model)
    model.to("cpu")
    assert places(model) == before


def test_a_patch_whose_factors_found_no_memory_is_not_left_out_later(pack, monkeypatch):
    from comfyui_hlwq.nodes.running import patchers

    patch = patchers.PatchAfterDecoding("k", {"k": [(1.0, ("diff", (torch.ones(2, 2),)), 1.0, None, None)]})

    def full(*args):
        raise torch.OutOfMemoryError("full")

    with monkeypatch.context() as first, pytest.raises(torch.OutOfMemoryError):
        first.setattr(patchers, "_move", full)
        patch(torch.zeros(2, 2))
    assert torch.equal(patch(torch.zeros(2, 2)), torch.ones(2, 2))


def test_unloading_gives_the_scratch_back(load):
    """Text encoders are not sampled: nobody else would."""
    import comfy.model_management
    from comfyui_hlwq.hlwq_core.running import scratch

    model = load()[0]
    device = torch.device("cpu")
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        layer = model.model.diffusion_model.transformer_blocks[0].attn1.to_q
        layer(torch.randn(1, 3, layer.in_features).bfloat16())
    assert scratch.nbytes(device)
    comfy.model_management.unload_all_models()
    assert not scratch.nbytes(device)


def test_non_dynamic_clone_loads_the_model_again(load):
    """torch.compile asks a dynamic patcher for this; without cached_patcher_init it raises."""
    model = load()[0]
    function, arguments = model.cached_patcher_init
    with torch.inference_mode():
        again = function(*arguments, disable_dynamic=True)
    assert again.model is not model.model and not again.is_dynamic()
    assert again.cached_patcher_init == model.cached_patcher_init
    clone = model.clone()
    assert type(clone) is type(model) and clone.model is model.model


def test_clones_that_core_makes_plain_become_ours(load, pack):
    import comfy.model_patcher
    from comfyui_hlwq.nodes.running import patchers

    model = load()[0]
    plain = comfy.model_patcher.ModelPatcher(model.model, torch.device("cpu"), torch.device("cpu"))
    assert isinstance(patchers.adopt(plain), patchers.PackedPatcher)
    assert isinstance(plain.clone(), patchers.PackedPatcher)


PROBE = """
import asyncio, importlib.util, sys
root, base, *flags = sys.argv[1:]
sys.argv = ["main.py", "--base-directory", base, *flags]
import comfy.options
comfy.options.enable_args_parsing()
import torch, comfy.model_management, comfy.sample, comfy.nested_tensor
spec = importlib.util.spec_from_file_location("pack", root + "/__init__.py", submodule_search_locations=[root])
pack = importlib.util.module_from_spec(spec); sys.modules["pack"] = pack; spec.loader.exec_module(pack)
from pack.nodes import load_checkpoint, locations
with torch.inference_mode():
    model = load_checkpoint.load_checkpoint(locations.checkpoint("LTX-2.3-tiny-HLWQ-Q5"))[0]
    latent = comfy.nested_tensor.NestedTensor([torch.zeros(1, 128, 2, 2, 2), torch.zeros(1, 8, 5, 16)])
    context = torch.randn(1, 128, 352, generator=torch.Generator().manual_seed(1))
    text = [[context, {"unprocessed_ltxav_embeds": True, "frame_rate": 25.0}]]
    noise = comfy.sample.prepare_noise(latent, 0)
    result = comfy.sample.sample(model, noise, 1, 1.0, "euler", "normal", text, text, latent, seed=0, disable_pbar=True)
print("RMS", float(result.unbind()[0].float().square().mean().sqrt()), comfy.model_management.vram_state.name)
"""


@pytest.fixture(scope="module")
def plain_run(comfyui_path: Path, comfy_base: Path) -> str:
    return probe(comfyui_path, comfy_base)


def probe(comfyui: Path, base: Path, *flags: str) -> str:
    """RMS of the latents that a ComfyUI started with `flags` samples."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(root), str(base), "--cpu", *flags],
        cwd=comfyui,
        env={**os.environ, "PYTHONPATH": str(comfyui)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return next(line for line in done.stdout.splitlines() if line.startswith("RMS")).split()[1]


def test_comfyuis_memory_options(comfyui_path, comfy_base, plain_run):
    """--cpu decides the device; the options that ComfyUI allows beside it give the same latents."""
    assert probe(comfyui_path, comfy_base, "--disable-dynamic-vram", "--disable-smart-memory") == plain_run
