"""Replacing a checkpoint: killed at any rename, the next run finishes it, and the journal leads nowhere else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from hlwq_core import open_checkpoint
from hlwq_core.errors import InputError
from hlwq_core.tools.quantize import quantize

from .killing import killed_at, needs_fork
from .test_quantize import model

QUANTIZE = "hlwq_core.tools.quantize:quantize"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "dense.safetensors"
    save_file(model(), path)
    return path


def content(folder: Path) -> dict[str, bytes]:
    files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@needs_fork
@pytest.mark.parametrize("layout", ["published", "single"])
@pytest.mark.parametrize("there", [False, True])
def test_killed_at_any_rename_the_next_run_goes_on(tmp_path: Path, layout: str, there: bool) -> None:
    """The next run needs nothing that this one was not given, and leaves nothing of it behind."""
    options: dict[str, Any] = {"rules": "plain", "layout": layout, "chunk_bytes": 1}
    source = tmp_path / "dense.safetensors"
    save_file(model(blocks=1), source)
    name = "out" if layout == "published" else "out.safetensors"
    (tmp_path / "right").mkdir()
    quantize(source, tmp_path / "right" / name, bits=6, **options)
    right = content(tmp_path / "right" / name)
    if there:
        (tmp_path / "before").mkdir()
        old = tmp_path / "before" / name
        quantize(source, old, bits=4, **options)
        if layout == "published":
            (old / "upscalers").mkdir()
            (old / "upscalers" / "mine.safetensors").write_bytes((old / "hlwq.sha256.json").read_bytes())
            (old / "notes.txt").write_text("mine")
    for number in range(1, 60):
        place = tmp_path / f"try{number}"
        shutil.copytree(tmp_path / "before", place) if there else place.mkdir()
        target = place / name

        killed = killed_at(number, QUANTIZE, source, target, bits=6, force=there, **options)
        if killed:
            try:
                assert quantize(source, target, bits=6, force=there, **options).layers == 2
            except InputError:
                assert content(target) == right and not there, "nothing was left to do"
        found = content(target)
        if there and layout == "published":
            assert found.pop("notes.txt") == b"mine" and found.pop("upscalers/mine.safetensors")
        assert found == right, f"change {number}"
        assert not list(place.glob(".*")), f"change {number}: {list(place.glob('.*'))}"
        shutil.rmtree(place)
        if not killed:
            break
    assert 10 < number < 59, "chunks, their journal, and the last renames"


def test_a_finished_replacement_is_not_made_again(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of work: a run that died behind its last chunk ends at once when it is started again."""
    from hlwq_core.tools import quantize as module

    target = tmp_path / "out"
    quantize(source, target, rules="plain", bits=4)
    killed = 0
    for number in range(1, 60):
        killed = number
        if not killed_at(number, QUANTIZE, source, target, rules="plain", bits=6, force=True):
            break
        if (tmp_path / ".out.quantizing" / "replacing.json").exists():
            break
    assert killed < 59
    monkeypatch.setattr(module, "encode_layer", lambda *a, **k: pytest.fail("encoded again"))
    report = quantize(source, target, rules="plain", bits=6, force=True)
    assert report.layers == 6 and report.resumed_chunks == 1 and report.cosine > 0.99
    assert set(open_checkpoint(target).report()["bits"]) == {"6"}


@pytest.mark.parametrize(
    "steps",
    [
        {"away": [["../../etc", "x"]], "into": [], "discard": []},
        {"away": [], "into": [["/etc/passwd", "x"]], "discard": []},
        {"away": [], "into": [], "discard": ["../keep"]},
        {"away": [], "into": [["link/x", "y"]], "discard": []},
        {"away": [[5, "x"]], "into": [], "discard": []},
        {"away": "x", "into": [], "discard": []},
        {"away": [["C:\\x", "y"]], "into": [], "discard": []},
        {"discard": []},
        "[" * 100_000,
    ],
)
def test_a_journal_names_nothing_outside_of_its_folder(tmp_path: Path, steps: Any) -> None:
    """It lies beside a checkpoint, where anybody may have put it."""
    from hlwq_core.tools.replacing import finish

    root = tmp_path / "models"
    root.mkdir()
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "x").write_text("mine")
    (root / "link").symlink_to(tmp_path / "keep", target_is_directory=True)
    text = steps if isinstance(steps, str) else json.dumps({"format": "hlwq-replacing", **steps})
    (root / "replacing.json").write_text(text)
    with pytest.raises(InputError, match="cannot be understood"):
        finish(root / "replacing.json", root)
    assert (tmp_path / "keep" / "x").read_text() == "mine"


def test_a_refusal_names_what_lies_hidden_beside_the_target(tmp_path: Path, source: Path) -> None:
    (tmp_path / "out" / "upscalers").mkdir(parents=True)
    (tmp_path / "out" / "upscalers" / "x.txt").write_text("x")
    (tmp_path / ".out.quantizing.old").mkdir()
    with pytest.raises(InputError, match=r"\.out\.quantizing\.old"):
        quantize(source, tmp_path / "out", rules="plain", force=True)


@needs_fork
def test_a_repair_killed_at_any_rename_goes_on(tmp_path: Path, source: Path) -> None:
    """It adds files, one for codes and one for the rest: the second of them comes with the next run."""
    from hlwq_core.tools.repair import repair

    quantize(source, tmp_path / "whole", rules="plain", chunk_bytes=1)
    for number in range(1, 20):
        target = tmp_path / f"try{number}"
        shutil.copytree(tmp_path / "whole", target)
        chunks = sorted((target / "polarquant" / "codes").iterdir())
        chunks[0].unlink()
        shutil.rmtree(target / "polarquant" / "bf16")
        killed = killed_at(number, "hlwq_core.tools.repair:repair", target, source)
        if killed:
            repair(target, source)
        opened = open_checkpoint(target)
        whole = open_checkpoint(tmp_path / "whole")
        assert set(opened.names()) == set(whole.names()) and set(opened.plain_names()) == set(whole.plain_names())
        assert not [path for path in target.rglob(".*") if path.is_file()], f"change {number}"
        if not killed:
            break
    assert 2 < number < 19
