"""What a killed writer left is removed by the next one in that folder; what somebody writes is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hlwq_core import media
from hlwq_core.media.partial import Partial

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
