"""Quantizing: what is written is read back by an independent reader; resumed, refused, never half."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hlwq_core import open_checkpoint
from hlwq_core.checkpoints.dense import open_dense
from hlwq_core.cli import main
from hlwq_core.errors import IncompleteError, InputError, UnsupportedError
from hlwq_core.format.codebook import centroids
from hlwq_core.tools.quantize import quantize

from . import plain_reader

REPO = Path(__file__).resolve().parents[3]
LEVELS = {bits: centroids(bits).numpy() for bits in (2, 3, 4, 5, 6, 8)}


def model(blocks: int = 3, width: int = 256) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)

    def normal(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * 0.03).bfloat16()

    tensors = {"patch.bias": torch.ones(7), "odd_.name.weight": normal(64, 200), "final_layer.weight": normal(512, 256)}
    for i in range(blocks):
        tensors[f"blocks.{i}.attn.weight"] = normal(width, width)
        tensors[f"blocks.{i}.mlp.weight"] = normal(2 * width, width)
        tensors[f"blocks.{i}.norm.weight"] = normal(width)
    return tensors


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "dense.safetensors"
    save_file(model(), path, metadata={"config": '{"transformer": {}}', "author": "we"})
    return path


def error_of(decoded: np.ndarray, original: torch.Tensor) -> float:
    truth = original.double().numpy()
    return float(((decoded - truth) ** 2).sum() / (truth**2).sum())


@pytest.mark.parametrize("layout", ["published", "single"])
@pytest.mark.parametrize(("bits", "limit"), [(2, 0.13), (3, 0.04), (4, 0.011), (5, 3.1e-3), (6, 1.2e-3), (8, 1e-4)])
def test_an_independent_reader_gets_the_weights_back(
    tmp_path: Path, source: Path, layout: str, bits: int, limit: float
) -> None:
    target = tmp_path / ("out" if layout == "published" else "out.safetensors")
    report = quantize(source, target, bits=bits, rules="plain", layout=layout, chunk_bytes=60_000)
    tensors, metadata = plain_reader.weights(target, LEVELS)
    original = load_file(source)
    assert set(tensors) == set(original)
    for name, weight in original.items():
        decoded = tensors[name]
        if name.endswith(("attn.weight", "mlp.weight")):
            assert 0 < error_of(decoded[:, : weight.shape[1]], weight) < limit, name
        else:
            assert np.array_equal(decoded, weight.float().numpy()), name
    assert report.layers == 6 and report.kept == 6
    assert metadata["config"] == '{"transformer": {}}' and metadata["author"] == "we"
    assert report.cosine == pytest.approx(1 - report.relative_error / 2, abs=3e-2)
    # And our own reader agrees with it.
    checkpoint = open_checkpoint(target)
    ours = checkpoint.decode("blocks.0.mlp.weight", torch.float32)
    assert np.abs(ours.numpy() - tensors["blocks.0.mlp.weight"]).max() < 1e-5


def test_published_layout_is_the_authors(tmp_path: Path, golden: Path) -> None:
    """Byte for byte what the author's own code made of the same weights."""
    rules = tmp_path / "all.json"
    rules.write_text('{"rules": [{"match": "*", "bits": 5}]}')
    quantize(golden / "mini_original_bf16.safetensors", tmp_path / "mini", rules=rules, chunk_bytes=20_000)
    files = sorted((tmp_path / "mini" / "polarquant" / "codes").iterdir())
    assert [file.name for file in files] == [f"chunk_{i:02d}_codes.safetensors" for i in range(len(files))]
    assert len(files) >= 2
    ours: dict[str, torch.Tensor] = {}
    for file in files:
        ours |= load_file(file)
    theirs: dict[str, torch.Tensor] = {}
    for file in (golden / "mini_msb_infinite" / "polarquant" / "codes").iterdir():
        theirs |= load_file(file)
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        found = ours[key][:4] if key.endswith("__meta") else ours[key]
        assert found.dtype == value.dtype and torch.equal(found, value), key


def test_names_that_v1_cannot_hold_keep_their_dots(tmp_path: Path, source: Path) -> None:
    rules = tmp_path / "all.json"
    rules.write_text('{"rules": [{"match": "odd*", "bits": 5}]}')
    quantize(source, tmp_path / "out", rules=rules)
    keys = load_file(next((tmp_path / "out" / "polarquant" / "codes").iterdir()))
    assert "odd_.name.weight__packed" in keys
    assert keys["odd_.name.weight__meta"].tolist() == [64, 2, 128, 64 * 256, 200]
    assert open_checkpoint(tmp_path / "out").info("odd_.name.weight").shape == (64, 200)


def test_sharded_folder_with_index(tmp_path: Path, source: Path) -> None:
    tensors = load_file(source)
    folder = tmp_path / "shards"
    folder.mkdir()
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    quantize(folder, tmp_path / "a", rules="plain")
    quantize(source, tmp_path / "b", rules="plain")
    first, second = (plain_reader.weights(tmp_path / x, LEVELS)[0] for x in "ab")
    assert set(first) == set(second)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(IncompleteError, match=r"model-2\.safetensors"):
        quantize(folder, tmp_path / "c", rules="plain")


class Stop(Exception):
    pass


def stop_after(calls: int) -> Callable[[int, int, str], None]:
    count = 0

    def progress(done: int, total: int, text: str) -> None:
        nonlocal count
        count += 1
        if count == calls:
            raise Stop

    return progress


@pytest.mark.parametrize("layout", ["published", "single"])
def test_stopped_work_goes_on(tmp_path: Path, source: Path, layout: str) -> None:
    target = tmp_path / ("out" if layout == "published" else "out.safetensors")
    options: dict[str, Any] = {"rules": "plain", "layout": layout, "chunk_bytes": 90_000}
    with pytest.raises(Stop):
        quantize(source, target, **options, progress=stop_after(4))
    assert not target.exists()
    report = quantize(source, target, **options)
    assert report.resumed_chunks >= 1
    assert report.weights == 3 * (256 * 256 + 512 * 256)
    whole = tmp_path / ("whole" if layout == "published" else "whole.safetensors")
    quantize(source, whole, **options)
    first, second = (plain_reader.weights(path, LEVELS)[0] for path in (target, whole))
    assert set(first) == set(second) and all(np.array_equal(first[n], second[n]) for n in first)
    assert not list(tmp_path.glob(".*")), "nothing may be left beside the targets"


def test_two_runs_do_not_write_to_one_target(tmp_path: Path, source: Path) -> None:
    """A second run, started while the first writes, is refused and disturbs nothing."""
    target, refused = tmp_path / "out", []

    def second_run(done: int, total: int, text: str) -> None:
        if not refused:
            with pytest.raises(InputError, match=r"(?s)another run is writing.*wait until it has finished") as caught:
                quantize(source, target, rules="plain", chunk_bytes=90_000)
            refused.append(caught.value)
            quantize(source, tmp_path / "other", rules="plain")  # other targets are free

    quantize(source, target, rules="plain", chunk_bytes=90_000, progress=second_run)
    whole = tmp_path / "whole"
    quantize(source, whole, rules="plain", chunk_bytes=90_000)
    assert refused and not list(tmp_path.glob(".*"))
    first, second = (plain_reader.weights(path, LEVELS)[0] for path in (target, whole))
    assert set(first) == set(second) and all(np.array_equal(first[n], second[n]) for n in first)
    quantize(source, target, rules="plain", force=True)  # it is free again


def test_other_choices_do_not_resume(tmp_path: Path, source: Path) -> None:
    with pytest.raises(Stop):
        quantize(source, tmp_path / "out", rules="plain", chunk_bytes=90_000, progress=stop_after(4))
    report = quantize(source, tmp_path / "out", rules="plain", chunk_bytes=90_000, norms="search")
    assert report.resumed_chunks == 0 and report.relative_error < 2.1e-3


def test_a_killed_process_goes_on(tmp_path: Path) -> None:
    source = tmp_path / "dense.safetensors"
    save_file(model(blocks=12, width=512), source)
    command = [sys.executable, "-m", "hlwq_core", "quantize", str(source), str(tmp_path / "out"), "--rules", "plain"]
    command += ["--norms", "search", "--json"]
    code = "import hlwq_core.tools.quantize as q; q.CHUNK_BYTES = 400_000\n"
    code += "import functools, sys, time\n"
    code += "def wait(*_): time.sleep(0.05)\n"  # or a quick machine ends it before the kill
    code += "whole = q.quantize\n"
    code += "def quantize(*a, progress=None, **more): return whole(*a, chunk_bytes=400_000, progress=wait, **more)\n"
    code += "q.quantize = quantize\n"
    code += "from hlwq_core.cli import main\nsys.exit(main(sys.argv[1:]))"
    command[1:3] = ["-c", code]
    environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        journal = tmp_path / ".out.quantizing" / "journal.json"
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if journal.is_file() and len(json.loads(journal.read_text())["chunks"]) >= 2:
                break
            time.sleep(0.01)
        process.kill()
    finally:
        process.kill()
        process.wait(timeout=30)
    assert not (tmp_path / "out").exists(), "the run was to be killed before its end"
    report = quantize(source, tmp_path / "out", rules="plain", norms="search", chunk_bytes=400_000)
    assert report.resumed_chunks >= 2 and report.layers == 24
    assert len(open_checkpoint(tmp_path / "out").names()) == 24


@pytest.mark.parametrize("layout", ["published", "single"])
def test_stopped_at_any_rename_there_is_nothing_or_all(
    tmp_path: Path, source: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a kill would at that moment: no half target, and the next run needs no --force to go on."""
    rename = os.replace
    options: dict[str, Any] = {"rules": "plain", "layout": layout, "chunk_bytes": 90_000}
    for number in range(1, 40):
        target = tmp_path / (f"out{number}" if layout == "published" else f"out{number}.safetensors")
        calls = 0

        def stopping(a: Any, b: Any, number: int = number) -> None:
            nonlocal calls
            calls += 1
            if calls == number:
                raise Stop
            rename(a, b)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", stopping)
            try:
                quantize(source, target, **options)
            except Stop:
                assert not target.exists(), f"rename {number}"
            else:
                break
        assert quantize(source, target, **options).layers == 6
        assert len(open_checkpoint(target).names()) == 6
    assert number > 8, "several chunks, their journal, and the target"


def test_what_a_killed_replacement_left_is_in_nobodys_way(tmp_path: Path, source: Path) -> None:
    """The old checkpoint of a --force run that was killed at its very end."""
    target = tmp_path / "out"
    quantize(source, target, rules="plain", bits=4)
    left = tmp_path / ".out.quantizing.old" / "polarquant" / "codes"
    left.mkdir(parents=True)
    (left / "chunk_00_codes.safetensors").write_bytes(b"old")
    quantize(source, target, rules="plain", bits=6, force=True)
    assert set(open_checkpoint(target).report()["bits"]) == {"6"}
    assert not list(tmp_path.glob(".*"))


def test_metas_lie_together(tmp_path: Path, source: Path) -> None:
    """A reader of headers and metas then reads two places of a file, not one for every layer."""
    from hlwq_core.format.safefile import read_header

    quantize(source, tmp_path / "out", rules="plain")
    (file,) = (tmp_path / "out" / "polarquant" / "codes").iterdir()
    entries, _ = read_header(file)
    metas = [entry for name, entry in entries.items() if name.endswith("__meta")]
    assert len(metas) == 6 and max(entry.stop for entry in metas) == sum(entry.nbytes for entry in metas)


def test_memory_is_that_of_a_layer(tmp_path: Path) -> None:
    """Anonymous memory grows by far less than the model."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("needs /proc")
    source = tmp_path / "dense.safetensors"
    weight = torch.randn(256, 1024).bfloat16()
    save_file({f"blocks.{i}.weight": weight.clone() for i in range(96)}, source)  # 50 MB
    save_file({"blocks.0.weight": weight}, tmp_path / "small.safetensors")

    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    quantize(tmp_path / "small.safetensors", tmp_path / "warm", rules="plain")
    before, most = anonymous(), 0

    def progress(done: int, total: int, text: str) -> None:
        nonlocal most
        most = max(most, anonymous() - before)

    quantize(source, tmp_path / "out", rules="plain", progress=progress)
    assert most < 25_000, f"{most} kB"


@pytest.mark.parametrize("layout", ["single", "published"])
def test_who_cancels_when_all_is_written_is_too_late(tmp_path: Path, layout: str) -> None:
    """The target has its name by then: an error would tell of nothing that can be mended."""

    class Cancelled(Exception):
        pass

    def progress(done: int, total: int, text: str) -> None:
        if text == "done":
            raise Cancelled

    save_file({"blocks.0.weight": torch.randn(64, 256).bfloat16()}, tmp_path / "in.safetensors")
    for _ in range(2):
        target = tmp_path / ("out.safetensors" if layout == "single" else "out")
        report = quantize(
            tmp_path / "in.safetensors", target, rules="plain", layout=layout, progress=progress, force=target.exists()
        )
        assert report.layers == 1 and target.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.safetensors", target.name]


# -- refusals ----------------------------------------------------------------------------------------------------------


def refused(source: Path, target: Path, match: str, kind: type[Exception] = InputError, **options: Any) -> None:
    folder = source if source.is_dir() else source.parent  # never above: the other tests' folders hold gigabytes
    before = {path: path.read_bytes() for path in folder.rglob("*.safetensors")}
    with pytest.raises(kind, match=match):
        quantize(source, target, **({"rules": "plain"} | options))
    for path, content in before.items():
        assert path.read_bytes() == content, f"{path} was changed"


def test_same_source_and_target(tmp_path: Path, source: Path) -> None:
    refused(source, source, "the same", layout="single", force=True)
    refused(tmp_path, tmp_path, "the same", force=True)
    refused(tmp_path, tmp_path / "inside", "inside each other")
    refused(source, tmp_path, "inside each other", force=True)


def test_nan_weights_are_named_and_nothing_is_made(tmp_path: Path) -> None:
    tensors = model()
    tensors["blocks.1.mlp.weight"][3, 5] = float("nan")
    source = tmp_path / "dense.safetensors"
    save_file(tensors, source)
    refused(source, tmp_path / "out", r"(?s)NaN.*dense\.safetensors.*blocks\.1\.mlp\.weight")
    assert not (tmp_path / "out").exists()


def test_values_beyond_float16_norms(tmp_path: Path) -> None:
    source = tmp_path / "dense.safetensors"
    save_file({"blocks.0.weight": torch.full((256, 256), 1e5)}, source)
    refused(source, tmp_path / "out", r"(?s)too large.*blocks\.0\.weight")


@pytest.mark.parametrize(
    ("tensors", "options", "kind", "match"),
    [
        ({"a.bias": torch.ones(5)}, {}, InputError, "no 2-D weights"),
        ({"a.weight": torch.ones(256, 256, dtype=torch.int32)}, {}, InputError, "no 2-D weights"),
        ({"a.weight": torch.ones(256, 256)}, {"rules": "gemma"}, InputError, "matches no layer"),
        ({"a.weight": torch.ones(256, 256)}, {"rules": "nonsense"}, InputError, "unknown recipe"),
        ({"a.weight": torch.ones(256, 256)}, {"bits": 7}, InputError, "bits"),
        ({"a.weight": torch.ones(256, 256)}, {"norms": "best"}, InputError, "norms"),
        ({"a.weight": torch.ones(256, 256)}, {"device": "cuda:99x"}, InputError, "device"),
        ({"a.weight": torch.ones(256, 256)}, {"layout": "single"}, InputError, "one file"),
        ({"a__packed": torch.ones(256, dtype=torch.uint8)}, {}, UnsupportedError, "quantized already"),
        ({"a.weight": torch.ones(256, 256), "a.weight_scale": torch.ones(1)}, {}, UnsupportedError, "scale"),
    ],
)
def test_bad_input(tmp_path: Path, tensors: dict[str, torch.Tensor], options: dict, kind: type, match: str) -> None:
    save_file(tensors, tmp_path / "dense.safetensors")
    refused(tmp_path / "dense.safetensors", tmp_path / "out", match, kind, **options)
    assert not (tmp_path / "out").exists()


def test_not_safetensors(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"GGUF" + bytes(100))
    refused(tmp_path / "x.safetensors", tmp_path / "out", "GGUF", UnsupportedError)
    with pytest.raises(InputError, match="no such"):
        quantize(tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no safetensors"):
        quantize(tmp_path / "empty", tmp_path / "out")


def test_target_is_only_replaced_when_told_and_a_checkpoint(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "out"
    quantize(source, target, rules="plain", bits=4)
    (target / "upscalers").mkdir()
    save_file({"x": torch.ones(1)}, target / "upscalers" / "mine.safetensors")
    (target / "notes.txt").write_text("mine")
    refused(source, target, "--force")
    assert set(open_checkpoint(target).report()["bits"]) == {"4"}
    quantize(source, target, rules="plain", bits=6, force=True, chunk_bytes=60_000)
    assert set(open_checkpoint(target).report()["bits"]) == {"6"}
    assert (target / "upscalers" / "mine.safetensors").is_file() and (target / "notes.txt").read_text() == "mine"

    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("irreplaceable")
    refused(source, other, "never replaced", force=True)
    assert (other / "thesis.txt").read_text() == "irreplaceable"
    dense = tmp_path / "dense2.safetensors"
    save_file(model(), dense)
    refused(source, dense, "never replaced", layout="single", force=True)


def test_too_small_a_disk_is_refused_first(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr("hlwq_core.tools.quantize.shutil.disk_usage", lambda path: usage)
    refused(source, tmp_path / "out", "(?s)not enough room.*0.00 GB")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("file", "resumed"),
    [(2, 0), (3, 0), (4, 1)],
    ids=["the first chunk", "its entry in the journal", "the second chunk"],
)
def test_full_disk_in_between(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, file: int, resumed: int
) -> None:
    calls = 0

    def fsync(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == file:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    # What is finished takes room: the user is told where it lies, and that it is not lost.
    match = r"(?s)disk is full.*start it again.*\.out\.quantizing"
    refused(source, tmp_path / "out", match, chunk_bytes=90_000)
    assert not (tmp_path / "out").exists()
    # With room again, the work goes on where it was.
    assert quantize(source, tmp_path / "out", rules="plain", chunk_bytes=90_000).resumed_chunks == resumed


def test_a_place_that_cannot_be_written(tmp_path: Path, source: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    refused(source, tmp_path / "note.txt" / "out", "cannot be written")
    assert (tmp_path / "note.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("recipe", "layers", "cosine"), [("ltx23", 59, 0.9990), ("ltx23-compact", 90, 0.9990), ("ltx23-mixed", 90, 0.9960)]
)
def test_recipes_on_the_tiny_model(tiny: Path, tmp_path: Path, recipe: str, layers: int, cosine: float) -> None:
    """The overall cosine of each LTX recipe, with searched norms, on weights of the real structure."""
    from hlwq_core.tools.inspect import inspect

    original = tiny / "models" / "reference" / "ltx23_tiny_bf16.safetensors"
    report = quantize(original, tmp_path / "out.safetensors", norms="search", rules=recipe, layout="single")
    print(f"{recipe}: {report.layers} layers, {report.bits_a_weight:.3f} bits a weight, cosine {report.cosine:.5f}")
    assert report.layers >= layers - 1 and report.cosine >= cosine
    assert inspect(tmp_path / "out.safetensors").complete


def test_index_cannot_name_files_outside(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors.index.json").write_text('{"weight_map": {"a": "../../secret.safetensors"}}')
    with pytest.raises(Exception, match="outside"):
        open_dense(tmp_path)


def test_header_of_640_bytes_is_no_pickle(tmp_path: Path) -> None:
    """Such a header's length begins with 0x80, as pickles do."""
    for width in range(600):
        save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors", metadata={"k": "v" * width})
        if (tmp_path / "x.safetensors").read_bytes()[0] == 0x80:
            break
    else:
        pytest.fail("no header of 640 bytes was made")
    assert list(open_dense(tmp_path / "x.safetensors").entries) == ["a"]


# -- the command -------------------------------------------------------------------------------------------------------


def test_command(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out.safetensors"
    arguments = ["quantize", str(source), str(target), "--bits", "4", "--norms", "search", "--rules", "plain"]
    assert main([*arguments, "--layout", "single", "--plan"]) == 0
    assert not target.exists() and "6 layers" in capsys.readouterr().out
    assert main([*arguments, "--layout", "single", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["layers"] == 6 and report["bits_a_weight"] == pytest.approx(4.125)
    assert main([*arguments, "--layout", "single"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*arguments, "--layout", "single", "--force"]) == 0
    assert "cosine" in capsys.readouterr().out


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("quantize", "inspect", "verify", "repair", "download"):
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0
        assert f"example: python -m hlwq_core {command}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_the_models_own_recipe_and_what_comes_from_elsewhere(tmp_path: Path, prefix: str, capsys: Any) -> None:
    """Without --rules, a family's model is packed as its recipe says; at the end stands what the result does not hold."""
    block = f"{prefix}transformer_blocks.0."
    tensors = {
        f"{prefix}audio_adaln_single.linear.weight": torch.randn(256, 256),
        f"{prefix}keyframes_abs_pos_embedding": torch.randn(1, 256),
        f"{block}audio_attn1.to_q.weight": torch.randn(256, 256),
        f"{block}ff.net.2.weight": torch.randn(256, 256),
    }
    save_file(tensors, tmp_path / "dense.safetensors")
    assert main(["quantize", str(tmp_path / "dense.safetensors"), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "2 layers" in said and "recipe ltx25" in said and "LTX-2.5: transformer" in said
    assert "not in it: video VAE; use Load VAE" in said and "not in it: text projection" in said
    assert (tmp_path / "out" / "polarquant" / "bf16" / "ltx25_bf16.safetensors").is_file()
    assert main(["quantize", str(tmp_path / "dense.safetensors"), str(tmp_path / "out2"), "--plan"]) == 0
    assert "2 layers" in capsys.readouterr().out


def test_a_model_of_no_known_family_is_packed_by_the_plain_recipe(source: Path, tmp_path: Path) -> None:
    report = quantize(source, tmp_path / "out")
    assert report.recipe == "plain" and report.model == "" and not report.absent
