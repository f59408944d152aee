"""Files that are cut short or written while a tool reads them: an error that says so, never a signal that kills the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hlwq_core import open_checkpoint
from hlwq_core.checkpoints.dense import open_dense
from hlwq_core.errors import ChangedError
from hlwq_core.format.safefile import SafeFile
from hlwq_core.tools.inspect import inspect
from hlwq_core.tools.quantize import quantize
from hlwq_core.tools.repair import repair
from hlwq_core.tools.verify import verify
from tests.attacks import checkpoints as attacks

REPO = Path(__file__).resolve().parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return attacks.sound(tmp_path / "c", layers=6)


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return attacks.original(tmp_path / "dense.safetensors", layers=6)


def codes(folder: Path) -> Path:
    return next((folder / "polarquant" / "codes").iterdir())


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def remove(path: Path) -> None:
    path.unlink()


class At:
    """A progress callback that does something to a file at its n-th call."""

    def __init__(self, number: int, change, path: Path):
        self.left, self.change, self.path = number, change, path

    def __call__(self, *_: object) -> None:
        self.left -= 1
        if self.left == 0:
            self.change(self.path)


@pytest.mark.parametrize("change", [cut, touch])
@pytest.mark.parametrize("against", [False, True])
def test_verify(folder: Path, original: Path, change, against: bool) -> None:
    found = verify(folder, original if against else None, progress=At(2, change, codes(folder)))
    assert not found.ok
    (problem,) = [p for p in found.problems if "changed while it was in use" in p.what]
    assert codes(folder).name in problem.where and problem.fix


@pytest.mark.parametrize("change", [cut, touch])
def test_verify_whose_original_changes(folder: Path, original: Path, change) -> None:
    found = verify(folder, original, progress=At(2, change, original))
    assert any("changed while it was in use" in p.what and "dense" in p.where for p in found.problems)


@pytest.mark.parametrize("change", [cut, touch])
def test_quantize_and_repair(folder: Path, original: Path, tmp_path: Path, change) -> None:
    rules = tmp_path / "all.json"
    rules.write_text('{"rules": [{"match": "*", "bits": 5}]}')
    with pytest.raises(ChangedError, match="changed while it was in use") as caught:
        quantize(original, tmp_path / "out", rules=rules, progress=At(2, change, original))
    assert caught.value.file == str(original) and caught.value.fix
    assert not (tmp_path / "out").exists()
    attacks.original(original, layers=8)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ChangedError):
        repair(folder, original, progress=At(1, change, original))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("change", [cut, touch])
@pytest.mark.parametrize("mapped", [False, True])
def test_before_the_first_tensor(folder: Path, change, mapped: bool) -> None:
    """Also of a model that is loaded: nothing is mapped of another file than the one whose header was read."""
    checkpoint = open_checkpoint(folder, mapped=mapped)
    file = SafeFile(codes(folder), mapped=mapped)
    change(codes(folder))
    for read in (
        lambda: checkpoint.packed(checkpoint.names()[0]),
        lambda: file.tensor(next(iter(file))),
        lambda: file.rows(next(iter(file)), [0], 1),
    ):
        with pytest.raises(ChangedError) as caught:
            read()
        assert caught.value.file == str(codes(folder)) and caught.value.tensor


def test_a_file_that_goes_on_being_read_is_read_once(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_dense(original)
    name = next(iter(source.entries))
    first = source.tensor(name)
    remove(original)
    assert source.tensor(name).data_ptr() == first.data_ptr(), "while somebody holds it, there is one copy"


def test_inspect_of_a_file_that_shrinks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = SafeFile.rows

    def rows(self, *args):
        if "codes" in self.path.name:
            cut(self.path)
        return real(self, *args)

    monkeypatch.setattr(SafeFile, "rows", rows)
    assert "changed while it was in use" in (inspect(folder).error or "")


def test_no_tool_dies_of_it(folder: Path, original: Path) -> None:
    """The whole command: SIGBUS would end it with 135 and without a word."""
    program = (
        "import os, sys\n"
        "from hlwq_core.cli import main\n"
        "from hlwq_core.tools import verify\n"
        "real = verify._Run.all\n"
        "def everything(self):\n"
        f"    os.truncate({str(codes(folder))!r}, 4096)\n"
        "    real(self)\n"
        "verify._Run.all = everything\n"
        f"sys.exit(main(['verify', {str(folder)!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "changed while it was in use" in done.stdout + done.stderr
