"""Bad checkpoints and paths: an error that names file, tensor and what to do, and nothing loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint (links), to be spoiled."""
    source = tiny / "models" / "hlwq" / "LTX-2.3-tiny-HLWQ-Q5"
    dest = tmp_path / "spoiled"
    for path in source.rglob("*"):
        if path.is_file():
            place = dest / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path.resolve())
    return dest


def chunk(copy: Path, index: int = 0) -> Path:
    return sorted((copy / "polarquant" / "codes").glob("*.safetensors"))[index]


def rest(copy: Path) -> Path:
    return next((copy / "polarquant" / "bf16").glob("*.safetensors"))


def change(path: Path, by: Callable[[Tensors], object]) -> None:
    """Rewrite a file of the copy with other tensors."""
    tensors = load_file(path)
    by(tensors)
    path.unlink()
    save_file(tensors, path)


def refused(pack: ModuleType, path: Path, **options: object):
    """Load, and give the error back; whatever is no error of the pack's own fails the test."""
    from comfyui_hlwq.hlwq_core.errors import HLWQError
    from comfyui_hlwq.nodes import load_checkpoint
    from comfyui_hlwq.nodes.running.choices import Choices

    with pytest.raises(HLWQError) as caught:
        load_checkpoint.load_checkpoint(path, Choices(**options))
    for part in ("expected", "found", "fix", *(() if options else ("file",))):
        assert getattr(caught.value, part), f"no {part} in: {caught.value}"
    return caught.value


def first(tensors: Tensors, ending: str) -> str:
    return next(name for name in tensors if name.endswith(ending))


def test_a_chunk_is_missing(pack, comfy_base, copy):
    chunk(copy, -1).unlink()
    error = refused(pack, copy)
    assert type(error).__name__ == "IncompleteError"
    assert "in none of the files" in str(error) and "model.diffusion_model." in error.tensor
    assert str(copy) in str(error) and "HLWQ Repair" in error.fix


def test_the_file_of_plain_tensors_is_missing(pack, comfy_base, copy):
    rest(copy).unlink()
    assert type(refused(pack, copy)).__name__ == "IncompleteError"


def test_a_layer_is_in_neither_file(pack, comfy_base, copy):
    name = "model.diffusion_model.transformer_blocks.1.attn1.to_q.bias"
    change(rest(copy), lambda tensors: tensors.pop(name))
    error = refused(pack, copy)
    assert error.tensor == name and error.what.startswith("1 of ")


@pytest.mark.parametrize(
    "name",
    [
        "vae.decoder.conv_in.conv.weight",
        "audio_vae.decoder.conv_out.conv.weight",
        "vocoder.mel_stft.stft_fn.forward_basis",
        "text_embedding_projection.video_aggregate_embed.bias",
        "model.diffusion_model.audio_adaln_single.linear.weight",
        "model.diffusion_model.transformer_blocks.0.scale_shift_table",
    ],
)
def test_any_component_is_incomplete(pack, comfy_base, copy, name):
    change(rest(copy), lambda tensors: tensors.pop(name))
    assert refused(pack, copy).tensor == name


def test_the_mel_basis_is_missing(pack, comfy_base, copy):
    """ComfyUI would fill it with zeros and only warn."""
    for path in sorted((copy / "polarquant" / "codes").glob("*.safetensors")):
        change(path, lambda tensors: [tensors.pop(key) for key in list(tensors) if "mel_basis" in key])
    assert refused(pack, copy).tensor == "vocoder.mel_stft.mel_basis"


def test_a_part_of_a_layer_is_missing(pack, comfy_base, copy):
    change(chunk(copy), lambda tensors: tensors.pop(first(tensors, "__norms")))
    assert "norms" in str(refused(pack, copy))


def test_a_tensor_that_nothing_knows(pack, comfy_base, copy):
    name = "model.diffusion_model.transformer_blocks.0.attn9.to_q.weight"
    change(rest(copy), lambda tensors: tensors.update({name: torch.zeros(2, 2)}))
    error = refused(pack, copy)
    assert error.tensor == name and "no place" in str(error)


@pytest.mark.parametrize("keep", [0, 4, 100, 5000])
def test_a_truncated_file(pack, comfy_base, copy, keep):
    path = chunk(copy, 1)
    data = path.read_bytes()[:keep]
    path.unlink()
    path.write_bytes(data)
    error = refused(pack, copy)
    assert type(error).__name__ == "FormatError" and error.file == str(path)


def test_a_corrupt_header(pack, comfy_base, copy):
    path = chunk(copy, 1)
    data = bytearray(path.read_bytes())
    data[9:12] = b"\xff\xfe\xfd"
    path.unlink()
    path.write_bytes(data)
    assert refused(pack, copy).file == str(path)


def test_codes_too_short(pack, comfy_base, copy):
    def shorten(tensors: Tensors) -> None:
        name = first(tensors, "__packed")
        tensors[name] = tensors[name][:-7].clone()

    change(chunk(copy), shorten)
    assert "too short" in str(refused(pack, copy))


def test_meta_contradicts_the_norms(pack, comfy_base, copy):
    def spoil(tensors: Tensors) -> None:
        name = first(tensors, "__meta")
        tensors[name] = tensors[name].clone() * 2

    change(chunk(copy), spoil)
    assert "meta contradicts the norms" in str(refused(pack, copy))


def test_four_bit_codes_where_five_are_claimed(pack, comfy_base, tmp_path):
    from comfyui_hlwq.hlwq_core.codec import codec

    encoded = codec.encode(torch.randn(8, 128), bits=4)
    folder = tmp_path / "claims"
    folder.mkdir()
    meta = torch.tensor([8, 1, 128, 1024, 128])
    tensors = {"a.weight__packed": encoded.packed().flatten(), "a.weight__norms": encoded.norms, "a.weight__meta": meta}
    save_file(tensors, folder / "model.safetensors")
    (folder / "polar_config.json").write_text(json.dumps({"format": "hlwq-q5"}))
    error = refused(pack, folder)
    assert error.expected == "5 bits" and error.found == "4 bits"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_norms_that_are_not_finite(pack, comfy_base, copy, value):
    def spoil(tensors: Tensors) -> None:
        name = first(tensors, "__norms")
        tensors[name] = tensors[name].clone()
        tensors[name][0, 0] = value

    change(chunk(copy), spoil)
    error = refused(pack, copy)
    assert "norms are not finite" in str(error) and error.file == str(chunk(copy))


def test_one_weight_twice(pack, comfy_base, copy):
    save_file(load_file(chunk(copy)), chunk(copy).with_name("chunk_99_codes.safetensors"))
    assert "two files" in str(refused(pack, copy))


def test_a_config_of_another_model(pack, comfy_base, copy):
    config = json.loads((copy / "config.json").read_text())
    config["transformer"]["num_attention_heads"] = 3
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps(config))
    error = refused(pack, copy)
    assert type(error).__name__ == "ConfigError" and "patchify_proj" in error.tensor


def test_no_config_and_not_the_full_model(pack, comfy_base, copy):
    (copy / "config.json").unlink()
    error = refused(pack, copy)
    assert type(error).__name__ == "ConfigError" and "config.json" in error.fix


def test_a_config_that_is_no_json(pack, comfy_base, copy):
    (copy / "config.json").unlink()
    (copy / "config.json").write_text("{")
    assert "no JSON" in str(refused(pack, copy))


def test_eoq_gguf_and_pickles_are_named(pack, comfy_base, tmp_path):
    eoq = tmp_path / "eoq.safetensors"
    save_file({"a.codes": torch.zeros(4, dtype=torch.uint8), "a.scales": torch.zeros(4)}, eoq)
    assert "EOQ" in str(refused(pack, eoq))
    for name, head, word in (("m.gguf", b"GGUF", "GGUF"), ("m.pt", b"PK\x03\x04", "pickle")):
        path = tmp_path / name
        path.write_bytes(head + bytes(64))
        assert word in str(refused(pack, path))


def test_an_upscaler_is_no_checkpoint(pack, comfy_base, copy):
    assert "no HLWQ checkpoint" in str(refused(pack, next((copy / "upscalers").glob("*.safetensors"))))


def test_an_unknown_backend(pack, comfy_base, copy):
    assert "unknown HLWQ backend" in str(refused(pack, copy, backend="abacus"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_backend_that_cannot_run_here(pack, comfy_base, copy):
    error = refused(pack, copy, backend="cuda")
    assert "cannot run on cpu" in str(error) and "eager" in error.fix


@pytest.mark.parametrize(
    "label", ["../../etc", "/etc/passwd", "a/../../b", "..\\..\\b", "C:\\models\\x", "\\\\server\\share"]
)
def test_paths_that_leave_the_model_folders(pack, comfy_base, label):
    from comfyui_hlwq.hlwq_core.errors import InputError
    from comfyui_hlwq.nodes import load_checkpoint, load_upscaler, locations

    for resolve in (locations.checkpoint, locations.upscaler):
        with pytest.raises(InputError, match="leaves the model folders"):
            resolve(label)
    assert "leaves" in load_checkpoint.HLWQLoadCheckpoint.validate_inputs(checkpoint=label)
    assert "leaves" in load_upscaler.HLWQLoadUpscaler.validate_inputs(upscaler=label)


@pytest.mark.parametrize("label", ["", ".", "nowhere"])
def test_checkpoints_that_are_not_there(pack, comfy_base, label):
    from comfyui_hlwq.hlwq_core.errors import InputError
    from comfyui_hlwq.nodes import locations

    with pytest.raises(InputError, match="asks for the checkpoint") as caught:
        locations.checkpoint(label)
    assert "your folders hold LTX-2.3-tiny-HLWQ-Q5" in caught.value.what


class TestUpscaler:
    """Load Upscaler."""

    @pytest.fixture
    def upscaler_refused(self, pack):
        from comfyui_hlwq.hlwq_core.errors import HLWQError
        from comfyui_hlwq.nodes import load_upscaler

        def check(path: Path):
            with pytest.raises(HLWQError) as caught:
                load_upscaler.load_upscaler(path)
            assert caught.value.file == str(path)
            return caught.value

        return check

    def test_another_file(self, upscaler_refused, comfy_base):
        lora = next((comfy_base / "models" / "loras").glob("*.safetensors"))
        assert "no latent upscaler" in str(upscaler_refused(lora))

    def test_a_missing_tensor(self, upscaler_refused, copy, tmp_path):
        path = tmp_path / "u.safetensors"
        tensors = load_file(next((copy / "upscalers").glob("*spatial*")))
        tensors.pop("res_blocks.0.norm1.bias")
        save_file(tensors, path)
        assert upscaler_refused(path).tensor == "res_blocks.0.norm1.bias"

    def test_a_config_that_contradicts(self, upscaler_refused, copy, tmp_path):
        path = tmp_path / "u.safetensors"
        tensors = load_file(next((copy / "upscalers").glob("*spatial*")))
        save_file(tensors, path, metadata={"config": json.dumps({"temporal_upsample": True})})
        assert upscaler_refused(path).tensor == "temporal_upsample"

    def test_a_truncated_file(self, upscaler_refused, copy, tmp_path):
        path = tmp_path / "u.safetensors"
        path.write_bytes(next((copy / "upscalers").glob("*spatial*")).read_bytes()[:-10])
        assert "cut off" in str(upscaler_refused(path))


def test_nothing_of_a_refused_checkpoint_stays(pack, comfy_base, copy):
    import comfy.model_management

    before = len(comfy.model_management.current_loaded_models)
    files = sorted(str(path) for path in copy.rglob("*"))
    chunk(copy, -1).unlink()
    refused(pack, copy)
    assert len(comfy.model_management.current_loaded_models) == before
    assert sorted(str(p) for p in copy.rglob("*")) == [f for f in files if os.path.lexists(f)]


SPOILED_UPSCALERS = {
    "a channel too many": {"initial_conv.weight": lambda t: t[:-1]},
    "a convolution of no rank": {"initial_conv.weight": lambda t: t.flatten()[0]},
    "no channels": {"initial_conv.weight": lambda t: t[:, :0]},
    "an upsampler of no rank": {"upsampler.0.weight": lambda t: t.flatten()[0]},
    "an upsampler of no channels": {"upsampler.0.weight": lambda t: t[:, :0]},
    "a bias of another width": {"initial_conv.bias": lambda t: t[:-1]},
}


@pytest.mark.parametrize("case", SPOILED_UPSCALERS)
def test_upscalers_that_do_not_fit_themselves(pack, copy, tmp_path, case):
    from comfyui_hlwq.hlwq_core.errors import FormatError
    from comfyui_hlwq.nodes import load_upscaler

    tensors = load_file(next((copy / "upscalers").glob("*spatial*")))
    for name, change in SPOILED_UPSCALERS[case].items():
        tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, tmp_path / "u.safetensors")
    with pytest.raises(FormatError) as caught:
        load_upscaler.load_upscaler(tmp_path / "u.safetensors")
    assert caught.value.file == str(tmp_path / "u.safetensors") and caught.value.tensor and caught.value.fix


@pytest.mark.parametrize("config", ["5", "[]", "[" * 100_000, '"x"', '{"dims": 1e999}', "\ufeff", "{"])
def test_an_upscaler_with_any_config(pack, copy, tmp_path, config):
    from comfyui_hlwq.hlwq_core.errors import ConfigError
    from comfyui_hlwq.nodes import load_upscaler

    tensors = load_file(next((copy / "upscalers").glob("*spatial*")))
    save_file(tensors, tmp_path / "u.safetensors", {"config": config})
    with pytest.raises(ConfigError) as caught:
        load_upscaler.load_upscaler(tmp_path / "u.safetensors")
    assert caught.value.file == str(tmp_path / "u.safetensors")


SHAPES = {
    "no rank": {"model.norm.weight": ()},
    "no width": {"model.layers.0.self_attn.q_norm.weight": (0,)},
    "a layer of number 9,999,999": {"model.layers.9999999.x": (1,)},
    "a layer of no number": {"model.layers.x.y": (1,)},
    "a vision tower of another rank": {"vision_model.embeddings.patch_embedding.weight": (4, 3)},
}


@pytest.mark.parametrize("case", SHAPES)
def test_widths_of_a_gemma_that_are_none(pack, case):
    from comfyui_hlwq.nodes import gemma

    first = "model.layers.0."
    shapes = {"model.embed_tokens.weight": (32, 8), "model.norm.weight": (8,), first + "mlp.gate_proj.weight": (16, 8)}
    shapes |= {first + f"self_attn.{n}.weight": (8, 8) for n in ("q_proj", "k_proj")}
    shapes[first + "self_attn.q_norm.weight"] = (4,)
    assert gemma.Sizes.read(shapes).layers == 1
    with pytest.raises(KeyError):
        gemma.Sizes.read(shapes | SHAPES[case])
