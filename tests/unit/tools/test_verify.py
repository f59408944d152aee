"""Verify: sound files pass, every kind of damage is found and named, exit codes are for scripts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hlwq_core.checkpoints.completeness import component, missing_in_blocks
from hlwq_core.cli import main
from hlwq_core.tools.quantize import quantize
from hlwq_core.tools.verify import verify


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = torch.Generator().manual_seed(4)
    path = tmp_path_factory.mktemp("dense") / "dense.safetensors"
    tensors = {}
    for i in range(4):
        for name in ("attn", "mlp"):
            weight = torch.randn(256, 256, generator=generator) * 0.02
            tensors[f"blocks.{i}.{name}.weight"] = weight.bfloat16()
        tensors[f"blocks.{i}.norm.weight"] = torch.ones(256)
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def made(dense: Path) -> Path:
    quantize(dense, dense.parent / "made", rules="plain", chunk_bytes=120_000)
    return dense.parent / "made"


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def change(folder: Path, key: str, value: torch.Tensor | None, keep_record: bool = False) -> None:
    """Replace (or drop) one tensor in whichever file holds it; the record of checksums goes too."""
    for file in folder.rglob("*.safetensors"):
        tensors = load_file(file)
        if key in tensors:
            with safe_open(file, "pt") as opened:
                metadata = opened.metadata()
            if value is None:
                del tensors[key]
            else:
                tensors[key] = value
            save_file(tensors, file, metadata)
    if not keep_record:
        (folder / "hlwq.sha256.json").unlink(missing_ok=True)


@pytest.mark.parametrize("norms", ["author", "search"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_sound_at_all_bits_and_norms(dense: Path, tmp_path: Path, bits: int, norms: str) -> None:
    quantize(dense, tmp_path / "out", rules="plain", bits=bits, norms=norms)
    alone = verify(tmp_path / "out")
    assert alone.ok, alone.problems
    assert alone.checksums == 2 and len(alone.layers) == 8
    against = verify(tmp_path / "out", dense)
    assert against.ok, against.problems
    assert against.overall is not None and against.overall["weights"] == 8 * 256 * 256


def test_figures_against_the_original(made: Path, dense: Path) -> None:
    """The same cosine and error as a plain computation in float64 gives."""
    from hlwq_core import open_checkpoint

    result = verify(made, dense)
    original, checkpoint = load_file(dense), open_checkpoint(made)
    a = torch.cat([original[name].double().flatten() for name in checkpoint.names()])
    b = torch.cat([checkpoint.decode(name, torch.float32).double().flatten() for name in checkpoint.names()])
    assert result.overall is not None
    assert result.overall["cosine"] == pytest.approx(float(a @ b / a.norm() / b.norm()), abs=1e-9)
    assert result.overall["relative_error"] == pytest.approx(float((a - b).square().sum() / (a @ a)), rel=1e-6)
    errors = [layer.relative_error for layer in result.layers]
    assert errors == sorted(errors, key=lambda error: -(error or 0))
    assert set(result.components) == {"blocks"}


def test_the_authors_files_are_sound(golden: Path) -> None:
    for name in ("mini_msb_infinite", "mini_lsb_infinite"):
        result = verify(golden / name / "polarquant", golden / "mini_original_bf16.safetensors")
        assert result.ok, result.problems
        assert result.overall is not None and result.overall["cosine"] == pytest.approx(0.9985, abs=3e-4)


def damaged(folder: Path, kind: str, where: str, original: Path | None = None) -> None:
    result = verify(folder, original)
    assert not result.ok
    assert any(p.kind == kind and where in p.where for p in result.problems), result.problems


def test_infinite_norm(copy: Path) -> None:
    norms = torch.ones(256, 2, dtype=torch.float16)
    norms[7, 1] = float("inf")
    change(copy, "blocks__2__mlp__weight__norms", norms)
    damaged(copy, "norms", "blocks.2.mlp.weight")


def test_random_codes(copy: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randint(0, 256, (256 * 160,), dtype=torch.uint8, generator=generator)
    change(copy, "blocks__1__attn__weight__packed", noise)
    damaged(copy, "codes", "blocks.1.attn.weight")


def test_a_flipped_byte_is_found_by_its_checksum(copy: Path) -> None:
    file = sorted((copy / "polarquant" / "codes").iterdir())[0]
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    file.write_bytes(data)
    damaged(copy, "sha256", file.name)


def test_a_file_that_the_record_names_and_is_not_there(copy: Path) -> None:
    record = json.loads((copy / "hlwq.sha256.json").read_text())
    record["files"]["../outside.safetensors"] = {"size": 1, "sha256": "0"}
    record["files"]["gone.safetensors"] = {"size": 1, "sha256": "0"}
    (copy / "hlwq.sha256.json").write_text(json.dumps(record))
    damaged(copy, "sha256", "gone.safetensors")
    damaged(copy, "sha256", "../outside.safetensors")


def test_a_truncated_file(copy: Path) -> None:
    file = sorted((copy / "polarquant" / "codes").iterdir())[0]
    file.write_bytes(file.read_bytes()[:-100])
    damaged(copy, "structure", file.name)


def test_missing_layers_with_and_without_the_original(copy: Path, dense: Path) -> None:
    for part in ("packed", "norms", "meta"):
        change(copy, f"blocks__1__mlp__weight__{part}", None)
    damaged(copy, "missing", "blocks.1.mlp.weight")
    damaged(copy, "missing", "blocks.1.mlp.weight", dense)


def test_a_file_of_the_rest_that_is_not_there(tiny: Path, tmp_path: Path) -> None:
    """No gap in the blocks shows it: the model itself says what it needs."""
    folder = Path(shutil.copytree(tiny / "models" / "hlwq" / "LTX-2.3-tiny-HLWQ-Q5", tmp_path / "tiny"))
    assert verify(folder).ok
    shutil.rmtree(folder / "polarquant" / "bf16")
    damaged(folder, "missing", "model.diffusion_model.scale_shift_table")


def test_a_cut_layer(copy: Path) -> None:
    change(copy, "blocks__3__attn__weight__norms", None)
    damaged(copy, "missing", "blocks.3.attn.weight")


def test_another_models_layer(copy: Path, dense: Path, tmp_path: Path) -> None:
    tensors = load_file(dense)
    tensors["blocks.0.attn.weight"] = tensors["blocks.0.attn.weight"].flip(0)
    tensors["blocks.0.norm.weight"] = torch.zeros(256)
    save_file(tensors, tmp_path / "other.safetensors")
    damaged(copy, "original", "blocks.0.attn.weight", tmp_path / "other.safetensors")
    damaged(copy, "original", "blocks.0.norm.weight", tmp_path / "other.safetensors")
    assert verify(copy, tmp_path / "other.safetensors").layers[0].name == "blocks.0.attn.weight", "the worst is first"


def test_command_and_exit_codes(
    made: Path, copy: Path, dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(made), "--against", str(dense)]) == 0
    said = capsys.readouterr().out
    assert "sound" in said and "worst layers" in said
    assert main(["verify", str(made), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    change(copy, "blocks__3__attn__weight__norms", None)
    assert main(["verify", str(copy), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"][0]["where"] == "blocks.3.attn.weight"
    assert main(["verify", str(tmp_path / "nothing")]) == 2
    assert main(["verify", str(made), "--against", str(tmp_path / "nothing")]) == 2


def test_what_nobody_foresaw_is_no_finding(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 says that the checkpoint has problems: a bug or a broken disk must not say that."""
    for error in (OSError(5, "Input/output error", "chunk"), ZeroDivisionError("bug")):

        def broken(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr("hlwq_core.tools.verify.verify", broken)
        assert main(["verify", str(made)]) == 2
        assert str(error) in capsys.readouterr().err


def test_components_and_gaps() -> None:
    assert component("model.diffusion_model.transformer_blocks.7.attn1.to_q.weight") == (
        "model.diffusion_model.transformer_blocks"
    )
    names = [f"m.blocks.{i}.{x}.weight" for i in (0, 1, 3, 4) for x in "abc"]
    names.remove("m.blocks.1.b.weight")
    expected = {"m.blocks.1.b.weight", *(f"m.blocks.2.{x}.weight" for x in "abc")}
    assert set(missing_in_blocks(names)) == expected
