"""LTX-2.5's text encoder: Gemma 4 with its projection in one file, quantized, loaded packed, and refused by name elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

HIDDEN, LAYERS = 64, 48


@pytest.fixture(scope="module")
def dense(tiny: Path) -> Path:
    """The text encoder in BF16, as core reads it."""
    path = tiny / "ltx25" / "models" / "text_encoders" / "gemma4_tiny_with_proj.safetensors"
    if not path.is_file():
        pytest.skip("this ComfyUI does not know Gemma 4 12B")
    return path


@pytest.fixture
def narrow(comfy: Path, dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Core's Gemma 4 12B in the widths of the tiny one, which core does not read from the file."""
    import comfy.text_encoders.gemma4 as gemma4

    whole = gemma4.Gemma4_12B_Config
    vocabulary = load_file(dense)["model.embed_tokens.weight"].shape[0]

    class Narrow(whole):
        head_dim, global_head_dim = 16, 32
        vision_config = {**whole.vision_config, "mm_embed_dim": HIDDEN, "output_proj_dims": HIDDEN}

        def __init__(self, **values: Any) -> None:
            small = {"vocab_size": vocabulary, "hidden_size": HIDDEN, "intermediate_size": 128}
            super().__init__(**{**small, "num_attention_heads": 2, "num_key_value_heads": 1, **values})
            self.num_global_key_value_heads = 1

    monkeypatch.setattr(gemma4, "Gemma4_12B_Config", Narrow)


@pytest.fixture(scope="module")
def checkpoint(dense: Path, tiny: Path) -> Path:
    """The packed transformer of the tiny LTX-2.5."""
    return tiny / "ltx25" / "models" / "diffusion_models" / "LTX-2.5-tiny-HLWQ-Q5.safetensors"


def encode(clip: Any, text: str) -> torch.Tensor:
    import nodes

    with torch.inference_mode():
        return nodes.CLIPTextEncode().encode(clip, text)[0][0][0]


def test_packed_it_encodes_as_core_does(
    pack, comfy_base, narrow: None, dense: Path, checkpoint: Path, tmp_path: Path
) -> None:
    import comfy.sd
    from comfyui_hlwq.hlwq_core.running.packed_tensor import is_packed
    from comfyui_hlwq.hlwq_core.tools.quantize import quantize
    from comfyui_hlwq.nodes.text_encoder import load_text_encoder

    report = quantize(dense, tmp_path / "gemma4.safetensors", bits=8, norms="search", rules="gemma", layout="single")
    assert report.layers == 48 * 7 - 8 + 1, "the global layers have no v_proj"
    clip = load_text_encoder(tmp_path / "gemma4.safetensors", checkpoint)
    packed = [value for value in clip.cond_stage_model.state_dict().values() if is_packed(value)]
    assert len(packed) == 48 * 7 - 8
    state = load_file(dense)
    core = comfy.sd.load_text_encoder_state_dicts([state], clip_type=comfy.sd.CLIPType.LTXV)
    plain = load_text_encoder(dense, checkpoint)
    expected = encode(core, "a cat at the piano")
    assert expected.shape[-1] == 256 + 96 and float(expected.norm()) > 0
    # Core computes the padding before it as well (nodes/unpadded.py), which moves roundings.
    assert float((encode(plain, "a cat at the piano") - expected).norm() / expected.norm()) < 1e-4
    found = encode(clip, "a cat at the piano")
    assert float((found - expected).norm() / expected.norm()) < 0.1
    assert not torch.equal(found, encode(clip, "the sea by night"))


def test_what_is_missing_is_named(pack, comfy_base, dense: Path, checkpoint: Path, tmp_path: Path) -> None:
    from comfyui_hlwq.hlwq_core.errors import IncompleteError, InputError
    from comfyui_hlwq.nodes.text_encoder import load_text_encoder

    state = load_file(dense)
    cases = {
        "no projection": (lambda name: "text_embedding_projection" not in name, IncompleteError, "has no projection"),
        "a layer": (lambda name: name != "model.layers.3.mlp.up_proj.weight", IncompleteError, "1 tensors of the text"),
        "no tokenizer": (lambda name: name != "tokenizer_json", IncompleteError, "tokenizer_json"),
    }
    for keep, kind, match in cases.values():
        save_file({name: value for name, value in state.items() if keep(name)}, tmp_path / "less.safetensors")
        with pytest.raises(kind, match=match):
            load_text_encoder(tmp_path / "less.safetensors", checkpoint)
    damaged = state | {"model.layers.7.mlp.up_proj.weight": torch.zeros(128, HIDDEN - 16, dtype=torch.bfloat16)}
    save_file(damaged, tmp_path / "damaged.safetensors")
    with pytest.raises(InputError, match="does not fit the others") as caught:
        load_text_encoder(tmp_path / "damaged.safetensors", checkpoint)
    assert caught.value.tensor == "model.layers.7.mlp.up_proj.weight"
    narrower = {name: value[:96].clone() if ".video_aggregate" in name else value for name, value in state.items()}
    save_file(narrower, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="do not fit together"):
        load_text_encoder(tmp_path / "other.safetensors", checkpoint)


def minimal(folder: Path, gemma: str) -> Path:
    """A file with the marks of a language model, and no more."""
    names = {"gemma3": "model.layers.0.self_attn.q_norm.weight", "gemma4": "model.layers.0.layer_scalar"}
    save_file({names[gemma]: torch.ones(16)}, folder / f"{gemma}.safetensors")
    return folder / f"{gemma}.safetensors"


@pytest.mark.parametrize(("version", "gemma"), [("ltx25", "gemma3"), ("ltx23", "gemma4")])
def test_the_text_encoder_of_another_version_is_refused_by_name(
    pack, comfy_base, tiny: Path, tmp_path: Path, version: str, gemma: str
) -> None:
    from comfyui_hlwq.hlwq_core.errors import InputError
    from comfyui_hlwq.hlwq_core.tools.quantize import quantize
    from comfyui_hlwq.nodes.text_encoder import load_text_encoder

    path = tiny / "models" / "hlwq" / "LTX-2.3-tiny-HLWQ-Q5"
    if version == "ltx25":
        block = "transformer_blocks.0."
        tensors = {
            name: torch.randn(256, 256) for name in (f"{block}ff.net.2.weight", f"{block}audio_attn1.to_q.weight")
        }
        save_file(tensors | {"keyframes_abs_pos_embedding": torch.ones(1, 256)}, tmp_path / "dense.safetensors")
        path = tmp_path / "ltx25.safetensors"
        quantize(tmp_path / "dense.safetensors", path, layout="single")
    names = {"ltx25": ("LTX-2.5", "Gemma 4 12B"), "ltx23": ("LTX-2.3", "Gemma 3 12B")}[version]
    with pytest.raises(
        InputError, match=f"this text encoder is a Gemma {gemma[-1]}, and {names[0]} is prompted by {names[1]}"
    ):
        load_text_encoder(minimal(tmp_path, gemma), path)


def test_needed_names_are_those_that_core_builds(pack, dense: Path) -> None:
    from comfyui_hlwq.nodes import gemma4

    state = load_file(dense)
    language = {name for name in state if name.startswith("model.")} | {"tokenizer_json"}
    projection = {name for name in state if name.startswith("text_embedding") and name.endswith("weight")}
    assert set(gemma4.needed()) == language | projection


def test_cores_int8_file_encodes_too(pack, comfy_base, dense: Path, checkpoint: Path, tmp_path: Path) -> None:
    """As the published int8 file: rotated rows of 8 bits in core's own format, the projection too."""
    import json

    import comfy.quant_ops
    from comfyui_hlwq.nodes.text_encoder import load_text_encoder

    state = load_file(dense)
    quant = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 16}
    mark = torch.frombuffer(bytearray(json.dumps(quant).encode()), dtype=torch.uint8)
    names = [name for name in state if "_proj.weight" in name or name.endswith("aggregate_embed.weight")]
    for name in names:
        codes, params = comfy.quant_ops.TensorWiseINT8Layout.quantize(
            state[name].float(), is_weight=True, per_channel=True, convrot=True, convrot_groupsize=16
        )
        prefix = name.removesuffix("weight")
        state |= {name: codes, f"{prefix}weight_scale": params.scale, f"{prefix}comfy_quant": mark.clone()}
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "gemma4_int8_convrot.safetensors")
    clip = load_text_encoder(tmp_path / "gemma4_int8_convrot.safetensors", checkpoint)
    found, expected = (encode(each, "a cat playing piano") for each in (clip, load_text_encoder(dense, checkpoint)))
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.1
