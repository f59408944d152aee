"""Nothing in the loader is made for LTX alone: a small Wan goes through quantize, load and sample."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

DIM, LAYERS = 128, 2


@pytest.fixture(scope="module")
def wan(pack: ModuleType, tmp_path_factory) -> Path:
    """A Wan 2.1 of random weights in core's own format: one head, two blocks, BF16."""
    import comfy.ldm.wan.model
    import comfy.ops

    torch.manual_seed(0)
    model = comfy.ldm.wan.model.WanModel(
        dim=DIM, ffn_dim=256, num_heads=1, num_layers=LAYERS, operations=comfy.ops.manual_cast, dtype=torch.bfloat16
    )
    weights = {}
    for name, value in model.state_dict().items():
        random = torch.randn(value.shape) * (0.4 / max(1, value.numel() // value.shape[0]) ** 0.5)
        weights[name] = (random + (1 if "norm" in name and name.endswith("weight") else 0)).to(torch.bfloat16)
    path = tmp_path_factory.mktemp("wan") / "wan_tiny.safetensors"
    save_file(weights, path)
    return path


@pytest.fixture(scope="module", params=["folder", "file", "prefixed file"])
def checkpoint(wan: Path, request, tmp_path_factory) -> Path:
    """The same, its linears quantized: by the quantizer into a folder, or as one file of V2 tensors."""
    from comfyui_hlwq.hlwq_core.codec import codec
    from comfyui_hlwq.hlwq_core.tools import quantize

    dest = tmp_path_factory.mktemp("quantized")
    if request.param == "folder":
        quantize.quantize(wan, dest / "wan", bits=5, rules="plain")
        return dest / "wan"
    prefix = "model.diffusion_model." if request.param == "prefixed file" else ""
    tensors = {}
    for name, weight in load_file(wan).items():
        if weight.dim() == 2 and name.startswith("blocks.") and name.endswith(".weight"):
            encoded = codec.encode(weight)
            tensors[f"{prefix}{name}__packed"] = encoded.packed().flatten()
            tensors[f"{prefix}{name}__norms"] = encoded.norms
            rows, blocks = encoded.norms.shape
            meta = [rows, blocks, 128, rows * blocks * 128, weight.shape[1]]
            tensors[f"{prefix}{name}__meta"] = torch.tensor(meta)
        else:
            tensors[prefix + name] = weight
    save_file(tensors, dest / "wan.safetensors")
    return dest / "wan.safetensors"


def run(model, sample):
    text = [[torch.randn(1, 8, 4096, generator=torch.Generator().manual_seed(2)), {}]]
    return sample(model, steps=3, latent=torch.zeros(1, 16, 1, 4, 4), text=text)


def test_quantized_wan_loads_and_samples(checkpoint, wan, sample, distance):
    import comfy.sd
    from comfyui_hlwq.hlwq_core import open_checkpoint
    from comfyui_hlwq.nodes import load_checkpoint
    from comfyui_hlwq.nodes.running import patchers

    with torch.inference_mode():
        model, vae, audio_vae, report = load_checkpoint.load_checkpoint(checkpoint)
    assert type(model.model).__name__ == "WAN21" and vae is None and audio_vae is None
    assert "WAN21" in report and "read from the tensors by ComfyUI" in report
    packed = dict(patchers.packed_modules(model))
    assert len(packed) >= LAYERS * 8

    # Core's own path with the decoded weights.
    opened, weights = open_checkpoint(checkpoint), load_file(wan)
    for name in opened.names():
        weights[name.removeprefix("model.diffusion_model.")] = opened.decode(name)
    dense = comfy.sd.load_diffusion_model_state_dict(dict(weights))
    assert distance(run(model, sample), run(dense, sample)) < 0.01
    # The quantization is near the original, and another model is not.
    assert distance(run(model, sample), run(comfy.sd.load_diffusion_model_state_dict(load_file(wan)), sample)) < 0.5


def test_a_missing_tensor_is_named(wan, tmp_path):
    from comfyui_hlwq.hlwq_core.codec import codec
    from comfyui_hlwq.hlwq_core.errors import IncompleteError
    from comfyui_hlwq.nodes import load_checkpoint

    tensors = load_file(wan)
    encoded = codec.encode(tensors.pop("blocks.0.self_attn.q.weight"))
    tensors["blocks.0.self_attn.q.weight__packed"] = encoded.packed().flatten()
    tensors["blocks.0.self_attn.q.weight__norms"] = encoded.norms
    del tensors["blocks.1.cross_attn.k.bias"]
    save_file(tensors, tmp_path / "wan.safetensors")
    with pytest.raises(IncompleteError) as caught, torch.inference_mode():
        load_checkpoint.load_checkpoint(tmp_path / "wan.safetensors")
    assert caught.value.tensor == "blocks.1.cross_attn.k.bias"


def test_a_model_that_comfyui_does_not_know(pack, tmp_path):
    from comfyui_hlwq.hlwq_core.codec import codec
    from comfyui_hlwq.hlwq_core.errors import UnsupportedError
    from comfyui_hlwq.nodes import load_checkpoint

    encoded = codec.encode(torch.randn(8, 128))
    tensors = {"strange.weight__packed": encoded.packed().flatten(), "strange.weight__norms": encoded.norms}
    save_file(tensors, tmp_path / "strange.safetensors")
    with pytest.raises(UnsupportedError, match="knows no model"), torch.inference_mode():
        load_checkpoint.load_checkpoint(tmp_path / "strange.safetensors")


def test_pack_rest_packs_the_large_layers(wan, tmp_path, sample, distance, monkeypatch):
    from comfyui_hlwq.hlwq_core.codec import codec
    from comfyui_hlwq.nodes import load_checkpoint, model_loading
    from comfyui_hlwq.nodes.running import patchers
    from comfyui_hlwq.nodes.running.choices import Choices

    tensors = load_file(wan)
    encoded = codec.encode(tensors.pop("blocks.0.self_attn.q.weight"))
    tensors["blocks.0.self_attn.q.weight__packed"] = encoded.packed().flatten()
    tensors["blocks.0.self_attn.q.weight__norms"] = encoded.norms
    save_file(tensors, tmp_path / "wan.safetensors")
    monkeypatch.setattr(model_loading, "PACK_REST_FROM", 1 << 15)
    with torch.inference_mode():
        small = load_checkpoint.load_checkpoint(tmp_path / "wan.safetensors", Choices(pack_rest=True))[0]
        large = load_checkpoint.load_checkpoint(tmp_path / "wan.safetensors")[0]
    packed = {key for key, _ in patchers.packed_modules(small)}
    assert "diffusion_model.text_embedding.0.weight" in packed and len(packed) > len(patchers.packed_modules(large))
    assert small.model_size() < 0.6 * large.model_size()
    assert distance(run(small, sample), run(large, sample)) < 0.5


@pytest.mark.parametrize(
    "codebook, taken", [("finite", "finite"), ("infinite", "infinite"), ("stored-abc", "infinite")]
)
def test_pack_rest_takes_the_checkpoints_own_codebook(pack, monkeypatch, codebook, taken):
    from comfyui_hlwq.hlwq_core.codec import codec
    from comfyui_hlwq.nodes import model_loading

    monkeypatch.setattr(model_loading, "PACK_REST_FROM", 1)
    linear = model_loading.PackedOperations.Linear(256, 16)
    dense = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    linear.weight = torch.nn.Parameter(dense, requires_grad=False)
    like = SimpleNamespace(names=lambda: ["a"], info=lambda name: SimpleNamespace(bits=5, codebook=codebook))
    model_loading.pack_the_rest(torch.nn.Sequential(linear), like, "eager")
    assert linear.weight._params.codebook == taken
    assert torch.equal(linear.weight.dequantize(), codec.encode(dense, 5, taken, norms="search").decode())
