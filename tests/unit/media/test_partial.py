"""What a killed writer left is removed by the next one in that folder; what somebody writes is not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from hlwq_core import media
from hlwq_core.media import partial, probe
from hlwq_core.media.partial import Partial

from ...attacks import kills
from ..tools.killing import killed_at, needs_fork

REPO = Path(__file__).resolve().parents[3]
HOLD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from hlwq_core.media.partial import Partial
partial = Partial(Path(sys.argv[2]), sys.argv[3])
print(partial.path.name, flush=True)
time.sleep(600)
"""
posix = pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed there")


def hidden(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name.startswith(".")}


@posix
@pytest.mark.parametrize("ending", [".mp4", ""])
def test_removed_once_its_process_is_gone(tmp_path: Path, ending: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(REPO), str(tmp_path / "a"), ending], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        name = process.stdout.readline().strip()
        try:
            mine = Partial(tmp_path / "b.mp4", ".mp4")
            assert hidden(tmp_path) == {name, mine.path.name}, "another process writes it"
        finally:
            process.kill()
    again = Partial(tmp_path / "c.mp4", ".mp4")
    assert hidden(tmp_path) == {mine.path.name, again.path.name}, "this process still writes its own"


@posix
@pytest.mark.parametrize("ending", [".mp4", ""])
@pytest.mark.parametrize("removed", [True, False], ids=["removed", "held by the other"])
def test_another_writer_tidies_up_before_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, removed: bool
) -> None:
    """Between the making of the file and its lock another one may take it for left behind."""
    lock = partial._lock
    met = []

    def late(path: Path) -> int | None:
        if met:
            return lock(path)
        met.append(path)
        held = lock(path)
        path.unlink() if ending else path.rmdir()
        if removed:
            return held
        assert held is not None
        os.close(held)
        raise BlockingIOError

    monkeypatch.setattr(partial, "_lock", late)
    mine = Partial(tmp_path / f"a{ending}", ending)
    assert met and mine.path != met[0] and mine.path.exists()
    other = Partial(tmp_path / f"b{ending}", ending)
    assert mine.path.exists() and other.path.exists()
    mine.release()
    other.release()


@posix
def test_many_writers_of_one_folder(tmp_path: Path) -> None:
    """Each one's own file stays, however the others come."""
    failed: list[Path] = []

    def run(number: int) -> None:
        for _ in range(60):
            mine = Partial(tmp_path / f"{number}.mp4", ".mp4")
            if not mine.path.exists():
                failed.append(mine.path)
            mine.path.unlink(missing_ok=True)
            mine.release()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and not hidden(tmp_path)


def test_only_names_of_unfinished_files_are_removed(tmp_path: Path) -> None:
    kept = {".hlwq-notes.txt", ".hlwq-0123456789ab.mp4.txt", ".hidden"}
    for name in kept:
        (tmp_path / name).write_text("mine")
    (tmp_path / "elsewhere.mp4").write_text("mine")
    if sys.platform != "win32":
        os.symlink(tmp_path / "elsewhere.mp4", tmp_path / ".hlwq-00112233445566.mp4"[:18])
    (tmp_path / ".hlwq-0123456789ab.mp4").write_text("left")
    media.write_video(tmp_path / "video.mp4", torch.rand(3, 64, 64, 3), media.frame_rate(24))
    assert hidden(tmp_path) >= kept and ".hlwq-0123456789ab.mp4" not in hidden(tmp_path)
    assert (tmp_path / "elsewhere.mp4").read_text() == "mine"


@needs_fork
@pytest.mark.parametrize("over", [True, False], ids=["over a video", "under the next free name"])
def test_killed_at_any_rename_a_video_is_whole_or_not_there(tmp_path: Path, over: bool) -> None:
    """Before each change of the folder, and then the same work once more."""
    for number in range(1, 10):
        folder = tmp_path / str(number)
        folder.mkdir()
        target = folder
        if over:
            target = folder / "video.mp4"
            target.write_bytes(b"another one")
        killed = killed_at(number, "tests.attacks.kills:save", target)
        for path in folder.glob("*.mp4"):
            if not path.name.startswith(".") and path.read_bytes() != b"another one":
                assert probe(path).video.frames == 40, f"change {number}"
        assert not over or target.is_file()
        kills.save(target)
        found = sorted(path.name for path in folder.iterdir())
        expected = [["video.mp4"]] if over else [["video_00001_.mp4"], ["video_00001_.mp4", "video_00002_.mp4"]]
        assert found in expected, f"change {number}: {found}"
        assert all(probe(folder / name).video.frames == 40 for name in found)
        if not killed:
            break
    assert number > 1
