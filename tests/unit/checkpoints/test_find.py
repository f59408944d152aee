"""The listing of what lies in a models folder: it never raises, always ends, and says what it passes over."""

from __future__ import annotations

import os
import shutil
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from hlwq_core.checkpoints import find
from hlwq_core.errors import HLWQError, InputError
from hlwq_core.format import safefile
from hlwq_core.format.bounded import open_regular
from tests.attacks import folders

CODES = folders.safetensors({"a.weight__packed": folders.tensor([4], 0, 4, "U8")}, bytes(4))


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "models" / "Mine" / "polarquant" / "codes").mkdir(parents=True)
    (tmp_path / "models" / "Mine" / "polarquant" / "codes" / "chunk_00.safetensors").write_bytes(CODES)
    yield tmp_path / "models"
    for name in ("attacked", "a tree 1,900 deep"):
        folders.remove_deep_tree(tmp_path / "models" / name)


@pytest.mark.parametrize("name", folders.ATTACKS)
def test_whatever_lies_there_the_rest_is_listed(root: Path, name: str) -> None:
    attacked = root / "attacked"
    attacked.mkdir()
    folders.ATTACKS[name](attacked)
    found = find.scan(root)
    assert "Mine" in {found.label(path) for path in found.homes()}
    assert "Mine" in find.find_checkpoints([root])
    # What may be a model of somebody's is in the list; everything else is named with its reason.
    listed = [file.path for file in found.files if "attacked" in file.path]
    assert listed or found.skipped or name == "folder named as a file"
    for item in found.skipped:
        assert item.reason and "\n" not in str(item) and "\x1b" not in str(item)


@pytest.mark.parametrize("name", [*folders.OTHER_KINDS, *folders.HEADERS, "FIFO", "socket", "device"])
def test_opening_the_same_file_is_an_error_with_a_way_out(tmp_path: Path, name: str) -> None:
    folders.ATTACKS[name](tmp_path)
    try:
        safefile.read_header(tmp_path / "x.safetensors")
    except HLWQError as error:
        assert error.file == str(tmp_path / "x.safetensors") and error.fix
        assert len(str(error)) < 10_000
        str(error).encode()
        if name in folders.OTHER_KINDS:
            assert name in str(error)
    else:
        assert name.startswith("10 MB"), "many tensors alone are no fault"


def test_each_reason_is_said(root: Path) -> None:
    for name in ("FIFO", "Git LFS pointer", "a tree 1,900 deep", "link loops", "names that are no text"):
        (root / name).mkdir()
        folders.ATTACKS[name](root / name)
    said = "\n".join(map(str, find.scan(root).skipped))
    for words in ("a FIFO", "Git LFS pointer", "folders deep", "a link to nothing", "no valid text"):
        assert words in said
    with pytest.raises(InputError, match="cannot be listed whole") as caught:
        find.files_of(root)
    assert caught.value.file and caught.value.fix


def test_links_back_are_followed_once(root: Path) -> None:
    folders.link_to_ancestor(root)
    (root / "other").symlink_to(root / "Mine", target_is_directory=True)
    found = find.scan(root)
    assert [found.label(path) for path in found.homes()] == ["Mine"]
    assert sum("listed already" in item.reason for item in found.skipped) == 3
    assert [path.name for path in find.files_of(root)] == ["chunk_00.safetensors"]


@pytest.mark.parametrize("fault", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_folders_that_cannot_be_read(root: Path, fault: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == "closed":
            raise fault
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find.scan(root)
    assert [found.label(path) for path in found.homes()] == ["Mine"]
    assert [item.reason for item in found.skipped] == [f"not readable: {fault.strerror}"]
    with pytest.raises(InputError, match="cannot be listed whole"):
        find.files_of(root)


def test_a_root_that_is_not_there_or_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CODES)
    for root in (tmp_path / "absent", tmp_path / "file", tmp_path / ("n" * 300)):
        assert find.scan(root) == find.Scan(str(root))


@pytest.mark.parametrize("moment", ["stat", "open_regular", "read"])
def test_files_that_vanish_or_change_while_they_are_read(
    root: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = root / "going.safetensors"
    path.write_bytes(CODES)
    if moment == "stat":
        real = os.stat

        def gone(where, **options):
            if str(where) == str(path):
                path.unlink(missing_ok=True)
            return real(where, **options)

        monkeypatch.setattr(os, "stat", gone)
    elif moment == "open_regular":

        def becomes_a_fifo(where):
            if str(where) == str(path):
                path.unlink(missing_ok=True)
                os.mkfifo(path)
            return open_regular(where)

        monkeypatch.setattr(find, "open_regular", becomes_a_fifo)
    else:

        def shrinks(where):
            file = open_regular(where)
            os.truncate(where, 20)
            return file

        monkeypatch.setattr(find, "open_regular", shrinks)
    found = find.scan(root)
    assert str(path) not in [file.path for file in found.files if file.codes]


def test_a_file_becomes_a_fifo_between_two_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "x")
    (tmp_path / "file").write_bytes(b"")
    looked = os.stat(tmp_path / "file")
    monkeypatch.setattr(os, "stat", lambda path: looked)
    with pytest.raises(InputError, match="no regular file"):
        open_regular(tmp_path / "x")


def test_unchanged_files_are_not_opened_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(find, "open_regular", lambda path: opened.append(os.path.basename(path)) or open_regular(path))
    memory = find.Memory()
    first = find.scan(root, memory)
    assert opened == ["chunk_00.safetensors"]
    assert find.scan(root, memory) == first and len(opened) == 1
    path = root / "Mine" / "polarquant" / "codes" / "chunk_00.safetensors"
    os.utime(path, ns=(1, 1))
    assert find.scan(root, memory) == first and len(opened) == 2
    shutil.rmtree(root / "Mine")
    assert not find.scan(root, memory).files and not memory.known


def test_limits_are_kept_and_said(root: Path) -> None:
    folders.many_files(200)(root)
    for i in range(30):
        (root / f"folder{i:02}").mkdir()
    for limits, words in (
        (find.Limits(files=50), "more than 50 files"),
        (find.Limits(entries=100), "more than 100 names"),
        (find.Limits(folders=10), "more than 10 folders"),
        (find.Limits(depth=1), "more than 1 folders deep"),
        (find.Limits(header=8), "a header of"),
    ):
        found = find.scan(root, limits=limits)
        assert any(words in item.reason for item in found.skipped), words
        assert len(found.files) <= 201


def test_many_files_leave_no_other_folder_out(root: Path) -> None:
    folders.many_files(500)(root)
    (root / "linked").symlink_to(root.parent / "away", target_is_directory=True)
    (root.parent / "away").mkdir()
    (root.parent / "away" / "mine.safetensors").write_bytes(CODES)
    found = find.scan(root, limits=find.Limits(files=60))
    assert {found.label(path) for path in found.homes()} == {"Mine", "linked"}
    assert any("more than 60 files" in item.reason for item in found.skipped)


def test_a_key_tells_and_a_value_does_not(tmp_path: Path) -> None:
    values = {"__metadata__": {"note": 'a__packed":', "b": "c__packed"}, "a": folders.tensor([0])}
    (tmp_path / "x.safetensors").write_bytes(folders.safetensors(values))
    assert not find.holds_codes(tmp_path / "x.safetensors")
    # However far into the header the first code is: at the border of what is read at once, too.
    for pad in range(find._CHUNK - 60, find._CHUNK + 10):
        header = {"__metadata__": {"x": "y" * pad}, "a.b.c__packed": folders.tensor([0], dtype="U8")}
        (tmp_path / "x.safetensors").write_bytes(folders.safetensors(header))
        assert find.holds_codes(tmp_path / "x.safetensors"), pad


def test_memory_of_a_listing(tmp_path: Path) -> None:
    folders.HEADERS["100 MB of empty tensors"](tmp_path)
    (tmp_path / "y").mkdir()
    folders.empty_tensors(30)(tmp_path / "y")
    folders.many_files(12_000)(tmp_path)
    tracemalloc.start()
    started = time.monotonic()
    found = find.scan(tmp_path)
    seconds = time.monotonic() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{len(found.files)} files in {seconds:.1f} s, {peak / 1e6:.0f} MB at most")
    assert peak < 20e6
    assert any("32 MiB" in item.reason or "are not looked through" in item.reason for item in found.skipped)
