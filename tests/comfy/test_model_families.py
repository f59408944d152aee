"""LTX-2.5 and LTX-2 beside LTX-2.3: recognised, quantized, loaded packed and sampled, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hlwq_core.models import families, ltx, ltx23
from hlwq_core.models.family import DIFFUSION

WIDTHS = {"ltx25": 256 + 96, "ltx2": 64}


def dense(tiny: Path, version: str) -> Path:
    """The tiny transformer of a version; skips where this ComfyUI does not know it."""
    path = tiny / version / "models" / "diffusion_models" / f"{version}_tiny_bf16.safetensors"
    if not path.is_file():
        pytest.skip(f"this ComfyUI does not know {families.by_key(version).name}")
    return path


def contents(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    return load_file(path), metadata


@pytest.mark.parametrize("version", ["ltx23", "ltx25", "ltx2"])
def test_names_are_those_that_core_builds(comfy: Path, tiny: Path, version: str) -> None:
    import comfy.ops
    from comfy.ldm.lightricks.av_model import LTXAVModel

    values: dict[str, Any] = ltx23.config()["transformer"]
    more: dict[str, Any] = {}
    if version != "ltx23":
        values = json.loads(contents(dense(tiny, version))[1]["config"])["transformer"]
        more = {"use_keyframes_abs_pos_embedding": True} if version == "ltx25" else {}
    model = LTXAVModel(**values, **more, device="meta", operations=comfy.ops.disable_weight_init)
    assert sorted(ltx.transformer(values | more)) == sorted(DIFFUSION + name for name in model.state_dict())
    needed = families.by_key(version).needed({"transformer": values})["transformer"]
    assert sorted(needed) == sorted(DIFFUSION + name for name in model.state_dict())


@pytest.fixture(scope="module", params=["ltx25", "ltx25-bare", "ltx2", "ltx2-bare"])
def packed(
    request: pytest.FixtureRequest, pack: ModuleType, comfy_base: Path, tiny: Path, tmp_path_factory: Any
) -> Iterator[tuple[str, Path, Path, Any]]:
    """Version, the packed file, and the same weights decoded to BF16 for core; the quantizer's report."""
    from comfyui_hlwq.hlwq_core import open_checkpoint
    from comfyui_hlwq.hlwq_core.tools.quantize import quantize

    version, _, bare = request.param.partition("-")
    tensors, metadata = contents(dense(tiny, version))
    if bare:
        tensors = {name.removeprefix(DIFFUSION): value for name, value in tensors.items()}
    folder = tmp_path_factory.mktemp(request.param)
    save_file(tensors, folder / "dense.safetensors", metadata)
    report = quantize(folder / "dense.safetensors", folder / "packed.safetensors", layout="single")
    ckpt = open_checkpoint(folder / "packed.safetensors")
    decoded = {name: ckpt.decode(name) for name in ckpt.names()}
    decoded |= {name: ckpt.plain(name).clone() for name in ckpt.plain_names()}
    save_file(decoded, folder / "decoded.safetensors", metadata)
    return version, folder / "packed.safetensors", folder / "decoded.safetensors", report


def text(version: str) -> list:
    context = torch.randn(1, 128, WIDTHS[version], generator=torch.Generator().manual_seed(1))
    return [[context, {"unprocessed_ltxav_embeds": True, "frame_rate": 25.0}]]


def test_quantize_load_sample(packed, sample: Callable, distance: Callable) -> None:
    """Packed against core running the same decoded weights in BF16: 1 % at most; the original is a few percent away."""
    import comfy.sd
    from comfyui_hlwq.nodes.load_checkpoint import load_checkpoint

    version, file, decoded, report = packed
    name = families.by_key(version).name
    assert report.recipe == version and report.model == name and report.holds == ["transformer"]
    assert report.layers == 2 * 28 + 3 and report.cosine > 0.998
    with torch.inference_mode():
        model, vae, audio_vae, said = load_checkpoint(file)
        reference = comfy.sd.load_diffusion_model(str(decoded))
        original = comfy.sd.load_diffusion_model(str(decoded.with_name("dense.safetensors")))
    assert vae is None and audio_vae is None and "no video VAE in it: use Load VAE" in said
    layers = [n for n, value in model.model.state_dict().items() if hasattr(value, "_qdata")]
    assert len(layers) == report.layers
    found, expected, exact = (sample(m, text=text(version)) for m in (model, reference, original))
    assert distance(found, expected) <= 0.01
    assert 0 < distance(found, exact) < 0.2


def test_all_tools_know_it(packed) -> None:
    from comfyui_hlwq.hlwq_core.tools import inspect, verify

    version, file, _, _ = packed
    found = inspect.inspect(file)
    assert found.complete and found.model == {"ltx25": "LTX-2.5 of another size", "ltx2": "LTX-2"}[version]
    assert verify.verify(file).ok


def test_a_tensor_less_and_a_tensor_of_another_version(packed, tmp_path: Path) -> None:
    from comfyui_hlwq.hlwq_core.errors import IncompleteError, UnsupportedError
    from comfyui_hlwq.nodes.model_loading import open_complete

    version, file, _, _ = packed
    tensors, metadata = contents(file)
    lost = next(name for name in tensors if name.endswith("audio_adaln_single.linear.bias"))
    save_file({n: t for n, t in tensors.items() if n != lost}, tmp_path / "less.safetensors", metadata)
    with pytest.raises(IncompleteError, match="1 of ") as caught:
        open_complete(tmp_path / "less.safetensors")
    assert caught.value.tensor == lost
    if version == "ltx25":
        block = lost.replace("audio_adaln_single.linear.bias", "transformer_blocks.0.ff.net.2.bias")
        save_file(tensors | {block: torch.zeros(256)}, tmp_path / "mixed.safetensors", metadata)
        with pytest.raises(UnsupportedError, match=r"no place in LTX-2\.5.*those of LTX-2\.3.*two versions"):
            open_complete(tmp_path / "mixed.safetensors")


def test_an_older_comfyui_is_named(pack: ModuleType, comfy_base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Whether the file is whole does not matter: nothing of it could be loaded."""
    from comfyui_hlwq.hlwq_core.errors import UnsupportedError
    from comfyui_hlwq.hlwq_core.tools.quantize import quantize
    from comfyui_hlwq.nodes import model_loading

    block = "transformer_blocks.0."
    tensors = {
        "audio_adaln_single.linear.weight": torch.randn(256, 256),
        "keyframes_abs_pos_embedding": torch.randn(1, 256),
        f"{block}audio_attn1.to_q.weight": torch.randn(256, 256),
    }
    for prefix in ("", DIFFUSION):
        save_file({prefix + name: value for name, value in tensors.items()}, tmp_path / "dense.safetensors")
        quantize(tmp_path / "dense.safetensors", tmp_path / "ltx25.safetensors", layout="single", force=True)
        monkeypatch.setattr(model_loading.comfyui_version, "__version__", "0.30.0")
        with pytest.raises(UnsupportedError, match=r"LTX-2\.5 needs ComfyUI 0\.32\.0 or newer, this is 0\.30\.0"):
            model_loading.open_complete(tmp_path / "ltx25.safetensors")
        monkeypatch.undo()


def test_an_ltx_of_unknown_version_is_refused_by_name(pack: ModuleType, comfy_base: Path, tmp_path: Path) -> None:
    from comfyui_hlwq.hlwq_core.errors import UnsupportedError
    from comfyui_hlwq.hlwq_core.tools.quantize import quantize
    from comfyui_hlwq.nodes.model_loading import open_complete

    block = f"{DIFFUSION}transformer_blocks.0."
    tensors = {f"{block}audio_attn1.to_q.weight": torch.randn(256, 256), f"{block}audio_attn1.to_q.bias": torch.ones(2)}
    save_file(tensors, tmp_path / "dense.safetensors")
    quantize(tmp_path / "dense.safetensors", tmp_path / "new.safetensors", layout="single", rules="plain")
    with pytest.raises(UnsupportedError, match="LTX with sound, of an unknown version"):
        open_complete(tmp_path / "new.safetensors")
