"""Inspect: what is there and what is not, why, and what to do next."""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hlwq_core.cli import main
from hlwq_core.errors import InputError
from hlwq_core.tools.inspect import coverage_picture, inspect, table

REPO = Path(__file__).resolve().parents[3]


def full_size(folder: Path, blocks: range = range(48), plain: bool = True) -> Path:
    """The published folder at full size: headers real, weights zero."""
    spec = importlib.util.spec_from_file_location("hlwq_scripts_make_full", REPO / "scripts" / "make_full.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make_full(folder, blocks, plain)


def test_the_whole_model_in_seconds(tmp_path: Path) -> None:
    folder = full_size(tmp_path / "full")
    inspect(folder)
    started = time.process_time()
    found = inspect(folder)
    assert time.process_time() - started < 5
    assert found.complete and found.model == "LTX-2.3 22B", table(found)
    assert found.report["quantized"] == 1347
    assert found.report["bits_a_weight"] == pytest.approx(5.125, abs=1e-3)
    assert found.components["model.diffusion_model.transformer_blocks"].quantized == 28 * 48
    assert sum(part.expected for part in found.components.values()) == 5947
    assert all(len(row) == 48 for row in found.grid.values())
    assert "verify" in found.next_step


def test_blocks_that_were_never_published(tmp_path: Path) -> None:
    """The sizes on the card: 18.6 of 48 blocks."""
    found = inspect(full_size(tmp_path / "card", range(19)))
    assert not found.complete and len(found.missing) == 28 * 29
    said = table(found)
    assert "19 to 47" in said and "NOT complete" in said
    assert "model card" in said and "of 48 blocks" in said
    assert "repair" in found.next_step
    picture = coverage_picture(found)
    assert picture.mode == "RGB" and picture.width > 48 * 10
    colours = {colour for _, colour in picture.getcolors(1 << 16)}
    assert {(72, 160, 120), (90, 130, 190), (210, 70, 60)} <= colours


def test_a_file_of_the_rest_that_is_not_there(tmp_path: Path) -> None:
    found = inspect(full_size(tmp_path / "codes", plain=False))
    assert not found.complete
    assert any("vae" in text and "missing" in text for text in found.hypotheses), found.hypotheses
    assert found.components["vae"].missing == found.components["vae"].expected > 0


def test_gap_in_the_chunks(tmp_path: Path) -> None:
    folder = full_size(tmp_path / "gap")
    (folder / "polarquant" / "codes" / "chunk_01_codes.safetensors").unlink()
    found = inspect(folder)
    assert any("chunk_01" in text for text in found.hypotheses)
    assert len(found.missing) == 12 * 28


def test_tiny_is_complete_and_its_gaps_show(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny / "models" / "hlwq" / "LTX-2.3-tiny-HLWQ-Q5", tmp_path / "tiny"))
    found = inspect(folder)
    assert found.complete, table(found)
    assert found.report["upscalers"] and found.report["detected"][0]["sure"]
    sorted((folder / "polarquant" / "codes").iterdir())[-1].unlink()
    broken = inspect(folder)
    assert not broken.complete and broken.missing
    # What lies there is counted as before.
    assert broken.report["quantized"] < found.report["quantized"]


def test_git_clone_without_lfs(tmp_path: Path, golden: Path) -> None:
    folder = Path(shutil.copytree(golden / "mini_msb_infinite" / "polarquant", tmp_path / "polarquant")).parent
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1500000000\n"
    (folder / "polarquant" / "codes" / "chunk_00_codes.safetensors").write_bytes(pointer)
    found = inspect(folder)
    assert found.error is not None and not found.complete
    assert any("Git LFS" in text for text in found.hypotheses)
    assert "download" in found.next_step


def test_other_models_are_judged_by_their_blocks(tmp_path: Path) -> None:
    from hlwq_core.tools.quantize import quantize

    tensors = {f"blocks.{i}.{x}.weight": torch.randn(256, 256) for i in range(4) for x in "ab"}
    save_file(tensors, tmp_path / "dense.safetensors")
    quantize(tmp_path / "dense.safetensors", tmp_path / "out.safetensors", rules="plain", layout="single")
    assert inspect(tmp_path / "out.safetensors").complete
    kept = {k: v for k, v in load_file(tmp_path / "out.safetensors").items() if not k.startswith("blocks.2.a")}
    save_file(kept, tmp_path / "cut.safetensors")
    found = inspect(tmp_path / "cut.safetensors")
    assert found.missing == ["blocks.2.a.weight"] and not found.complete


def test_the_next_step_fits_what_lies_there(tiny: Path, tmp_path: Path) -> None:
    """The published LTX-2.3 is never fetched into another model's folder, and never into a file."""
    from hlwq_core.tools.quantize import quantize

    save_file({f"blocks.{i}.a.weight": torch.randn(256, 256) for i in range(4)}, tmp_path / "dense.safetensors")
    dense = inspect(tmp_path / "dense.safetensors")
    assert dense.error and "quantize" in dense.next_step and "download" not in dense.next_step
    quantize(tmp_path / "dense.safetensors", tmp_path / "wan", rules="plain", chunk_bytes=50_000)
    (tmp_path / "wan" / "polarquant" / "codes" / "chunk_01_codes.safetensors").unlink()
    wan = inspect(tmp_path / "wan")
    assert wan.missing and "repair" in wan.next_step and "download" not in wan.next_step
    tiny_folder = Path(shutil.copytree(tiny / "models" / "hlwq" / "LTX-2.3-tiny-HLWQ-Q5", tmp_path / "tiny"))
    record = {"format": "hlwq-sha256", "repository": "we/ltx-tiny", "revision": "0" * 40, "files": {}}
    (tiny_folder / "hlwq.sha256.json").write_text(json.dumps(record))
    chunk = sorted((tiny_folder / "polarquant" / "codes").iterdir())[0]
    chunk.write_bytes(chunk.read_bytes()[:-10])
    assert f"download we/ltx-tiny --to {tiny_folder}" in inspect(tiny_folder).next_step
    single = tmp_path / "cut.safetensors"
    single.write_bytes(chunk.read_bytes())
    assert "hlwq_core download" not in inspect(single).next_step and "fetch the file again" in inspect(single).next_step


def test_a_picture_that_cannot_be_written(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tiny / "models" / "hlwq" / "LTX-2.3-tiny-HLWQ-Q5")
    for picture, match in ((tmp_path / "no" / "x.png", "cannot be written"), (tmp_path / "x.unknown", "png")):
        assert main(["inspect", folder, "--picture", str(picture)]) == 2
        said = capsys.readouterr().err
        assert match in said and str(picture) in said
    assert not list(tmp_path.iterdir())


def test_json_is_json_where_nothing_can_be_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Layers of zeros have no RMS, and no relative error: null, because NaN and Infinity are none of JSON."""
    from hlwq_core.tools.quantize import quantize

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    save_file({"blocks.0.a.weight": torch.zeros(256, 256)}, tmp_path / "dense.safetensors")
    quantize(tmp_path / "dense.safetensors", tmp_path / "zeros", rules="plain")
    save_file({"blocks.0.a.weight": torch.zeros(256, 256) + 1e-3}, tmp_path / "other.safetensors")
    quantize(tmp_path / "other.safetensors", tmp_path / "ones", rules="plain")
    for arguments in (
        ["inspect", "zeros"],
        ["verify", "zeros"],
        ["verify", "zeros", "--against", "dense.safetensors"],
        ["verify", "ones", "--against", "dense.safetensors"],
    ):
        paths = [str(tmp_path / a) if (tmp_path / a).exists() else a for a in arguments]
        assert main([*paths, "--json"]) in (0, 1)
        found = json.loads(capsys.readouterr().out, parse_constant=refuse)
        assert isinstance(found, dict)


def test_command(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tiny / "models" / "hlwq" / "LTX-2.3-tiny-HLWQ-Q5")
    assert main(["inspect", folder, "--picture", str(tmp_path / "x.png")]) == 0
    said = capsys.readouterr().out
    assert "complete" in said and "transformer_blocks" in said and "next:" in said
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert main(["inspect", folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["complete"] is True
    assert main(["inspect", str(tmp_path / "nothing")]) == 2
    with pytest.raises(InputError):
        inspect(tmp_path / "nothing")


def test_labels_are_whole(tmp_path: Path) -> None:
    """The names of LTX-2.3's layers are longer than a column was."""
    from hlwq_core.tools.inspect import Inspection, coverage_picture, table

    long = "audio_to_video_attn.to_gate_logits_and_more.weight"
    endless = "x" * 10_000 + ".tail"
    found = Inspection("a", stack="blocks", grid={long: ["quantized"] * 3, endless: ["plain"] * 3})
    lines = table(found).splitlines()
    assert any(line.split() == [long, "███"] for line in lines)
    (cut,) = (line for line in lines if line.endswith("▒▒▒"))
    assert cut.split()[0].startswith("…") and ".tail ▒▒▒" in cut and len(cut) < 100
    assert coverage_picture(found).width > 300
