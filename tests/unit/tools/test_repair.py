"""Repair: only what is missing, into new files; what exists stays byte for byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hlwq_core import open_checkpoint
from hlwq_core.cli import main
from hlwq_core.errors import HLWQError, InputError
from hlwq_core.tools.quantize import quantize
from hlwq_core.tools.repair import repair
from hlwq_core.tools.verify import verify


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = torch.Generator().manual_seed(9)
    path = tmp_path_factory.mktemp("dense") / "dense.safetensors"
    tensors = {"embed.weight": torch.randn(300, 256, generator=generator), "first.bias": torch.ones(3)}
    for i in range(4):
        for name in ("attn", "mlp"):
            tensors[f"blocks.{i}.{name}.weight"] = (torch.randn(256, 256, generator=generator) * 0.02).bfloat16()
        tensors[f"blocks.{i}.norm.weight"] = torch.ones(256)
    save_file(tensors, path, {"config": "{}"})
    return path


def make(dense: Path, target: Path, **options: object) -> Path:
    quantize(dense, target, **({"rules": "plain", "chunk_bytes": 90_000} | options))  # type: ignore[arg-type]
    return target


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def repaired(folder: Path, dense: Path) -> None:
    before = contents(folder)
    result = repair(folder, dense)
    after = contents(folder)
    assert all(after[name] == content for name, content in before.items()), "an existing file was changed"
    assert len(after) == len(before) + len(result.files)
    checked = verify(folder, dense)
    assert checked.ok, checked.problems
    assert repair(folder, dense).files == []


@pytest.mark.parametrize("norms", ["author", "search"])
@pytest.mark.parametrize("bits", [4, 5, 8])
def test_missing_chunk(dense: Path, tmp_path: Path, norms: str, bits: int) -> None:
    folder = make(dense, tmp_path / "out", norms=norms, bits=bits)
    chunks = sorted((folder / "polarquant" / "codes").iterdir())
    assert len(chunks) >= 3
    lost = open_checkpoint(folder).names()
    chunks[1].unlink()
    assert not verify(folder).ok
    repaired(folder, dense)
    # The record of checksums still names the lost file, and nothing that exists was touched.
    alone = verify(folder)
    assert alone.ok and any("chunk_01" in note for note in alone.notes), alone
    checkpoint = open_checkpoint(folder)
    assert sorted(checkpoint.names()) == sorted(lost)
    assert set(checkpoint.report()["bits"]) == {str(bits)}


def test_same_bytes_as_before_with_the_authors_norms(dense: Path, tmp_path: Path) -> None:
    folder = make(dense, tmp_path / "out")
    chunk = sorted((folder / "polarquant" / "codes").iterdir())[1]
    lost = load_file(chunk)
    chunk.unlink()
    repair(folder, dense)
    found = load_file(folder / "polarquant" / "codes" / "repair_00_codes.safetensors")
    assert set(found) == set(lost)
    assert all(torch.equal(found[key], lost[key]) for key in lost)


def test_missing_plain_tensors(dense: Path, tmp_path: Path) -> None:
    folder = make(dense, tmp_path / "out")
    shutil.rmtree(folder / "polarquant" / "bf16")
    repaired(folder, dense)
    assert open_checkpoint(folder).metadata["config"] == "{}"
    assert "embed.weight" in open_checkpoint(folder).plain_names()


@pytest.mark.parametrize("norms", ["author", "search"])
@pytest.mark.parametrize("parts", [("norms",), ("packed",), ("meta",), ("norms", "meta"), ("packed", "meta")])
def test_layers_cut_between_chunks(dense: Path, tmp_path: Path, parts: tuple[str, ...], norms: str) -> None:
    folder = make(dense, tmp_path / "out", norms=norms, chunk_bytes=10_000_000)
    (chunk,) = (folder / "polarquant" / "codes").iterdir()
    from safetensors import safe_open

    with safe_open(chunk, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(chunk)
    for part in parts:
        del tensors[f"blocks__2__mlp__weight__{part}"]
    save_file(tensors, chunk, metadata)
    (folder / "hlwq.sha256.json").unlink()
    repaired(folder, dense)


def test_what_is_lost_after_a_repair_is_found(dense: Path, tmp_path: Path) -> None:
    folder = make(dense, tmp_path / "out")
    chunks = sorted((folder / "polarquant" / "codes").iterdir())
    chunks[1].unlink()
    repair(folder, dense)
    chunks[2].unlink()
    found = verify(folder)
    assert any(p.kind == "sha256" and "chunk_02" in p.where for p in found.problems), found.problems
    assert not any("chunk_01" in p.where for p in found.problems)
    (folder / "polarquant" / "codes" / "repair_00_codes.safetensors").unlink()
    assert any("chunk_01" in p.where for p in verify(folder).problems), "the repair itself is lost"


def test_lsb_checkpoint_gets_lsb_layers(golden: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mini"
    shutil.copytree(golden / "mini_lsb_infinite" / "polarquant", folder / "polarquant")
    original = golden / "mini_original_bf16.safetensors"
    dropped = sorted((folder / "polarquant" / "codes").iterdir())[-1]
    dropped.unlink()
    before = set(open_checkpoint(folder, partial=True).names())
    assert repair(folder, original).quantized
    checkpoint = open_checkpoint(folder, shapes={k: tuple(v.shape) for k, v in load_file(original).items()})
    assert before < set(checkpoint.names())
    assert {checkpoint.info(name).packing for name in checkpoint.names()} == {"lsb"}
    assert verify(folder, original).ok


def test_what_the_original_lacks_too_is_named(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An original without VAE, say: what it has is filled in, and nobody takes the result for whole."""
    folder = Path(shutil.copytree(tiny / "models" / "hlwq" / "LTX-2.3-tiny-HLWQ-Q5", tmp_path / "tiny"))
    original = load_file(tiny / "models" / "reference" / "ltx23_tiny_bf16.safetensors")
    packed = open_checkpoint(folder).names()
    transformer = {n: value for n, value in original.items() if n.startswith("model.diffusion_model.") or n in packed}
    save_file(transformer, tmp_path / "transformer.safetensors")
    shutil.rmtree(folder / "polarquant" / "bf16")
    result = repair(folder, tmp_path / "transformer.safetensors")
    assert result.kept and result.still_missing
    assert set(result.still_missing) == set(original) - set(transformer) - set(result.quantized)
    assert main(["repair", str(folder), "--from", str(tmp_path / "transformer.safetensors")]) == 1
    assert "still missing" in capsys.readouterr().out


def test_refusals(dense: Path, tmp_path: Path) -> None:
    folder = make(dense, tmp_path / "out")
    sorted((folder / "polarquant" / "codes").iterdir())[0].unlink()
    before = contents(folder)
    other = {name: torch.zeros(64, 64) for name in load_file(dense)}
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="another model"):
        repair(folder, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="no such"):
        repair(folder, tmp_path / "nothing")
    single = tmp_path / "one.safetensors"
    quantize(dense, single, rules="plain", layout="single")
    with pytest.raises(InputError, match="only folders"):
        repair(single, dense)

    def stop(done: int, total: int, text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repair(folder, dense, progress=stop)
    assert contents(folder) == before
    with pytest.raises(HLWQError):
        repair(tmp_path, dense)


def test_command(dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(dense, tmp_path / "out")
    assert main(["repair", str(folder), "--from", str(dense)]) == 0
    assert "nothing is missing" in capsys.readouterr().out
    sorted((folder / "polarquant" / "codes").iterdir())[0].unlink()
    assert main(["repair", str(folder), "--from", str(dense), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quantized"]
    assert main(["repair", str(folder), "--from", str(tmp_path / "nothing")]) == 2
