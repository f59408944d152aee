"""scripts/demo.py as a user starts it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def demo(comfyui_path: Path, tiny: Path, tmp_path: Path) -> list[str]:
    """The command, with this environment, writing to the test's folder."""
    demo = [sys.executable, str(REPO / "scripts" / "demo.py"), "--output", str(tmp_path / "demo.mp4")]
    return [*demo, "--python", sys.executable, "--comfyui", str(comfyui_path)]


def children_of(text: str) -> list[int]:
    """Processes whose command line holds `text`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if text in (entry / "cmdline").read_text(errors="replace"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_demo_makes_a_video_with_sound(demo: list[str], tmp_path: Path) -> None:
    demo += ["--prompt", "Rain on a tin roof", "--width", "64", "--height", "64", "--steps", "2"]
    done = subprocess.run(demo, capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    path = tmp_path / "demo.mp4"
    assert str(path) in done.stdout
    for word in ("video:", "audio:", "packed tensors", "decoded on cpu"):
        assert word in done.stdout, done.stdout
    with av.open(str(path)) as file:
        video, audio = file.streams.video[0], file.streams.audio[0]
        assert (video.width, video.height) == (64, 64)
        frames = sum(1 for _ in file.decode(video))
        assert frames == 25 and video.average_rate == 24
        length = (audio.duration or 0) * (audio.time_base or Fraction(0))
        assert abs(length - Fraction(frames, 24)) <= Fraction(1, 24)
        assert "Rain on a tin roof" in str(file.metadata)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])  # the last: the terminal is closed
def test_demo_leaves_no_process_behind(demo: list[str], tmp_path: Path, name: str) -> None:
    # A base directory of this run's own cache makes its ComfyUI tell apart from others on this machine.
    cache = tmp_path / "cache"
    own = os.environ.get("HLWQ_CACHE") or Path("~/.cache/comfyui-hlwq").expanduser()
    (cache / "tiny").mkdir(parents=True)
    for made in (Path(own) / "tiny").glob("[0-9a-f]*"):
        (cache / "tiny" / made.name).symlink_to(made)
    log = tmp_path / "log"
    with log.open("wb") as out:
        variables = os.environ | {"HLWQ_CACHE": str(cache), "PYTHONUNBUFFERED": "1"}
        # Under nohup, or started in the background, we ignore the signal, and so would the demo.
        before = signal.signal(getattr(signal, name), signal.SIG_DFL)
        try:
            process = subprocess.Popen(demo, stdout=out, stderr=out, env=variables, cwd=tmp_path)
        finally:
            signal.signal(getattr(signal, name), before)
    try:
        end = time.monotonic() + 120
        while not any("main.py" in command_of(pid) for pid in children_of(str(cache))):
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        process.send_signal(getattr(signal, name))
        assert process.wait(60) not in (0, None), log.read_text()
    finally:
        process.kill()
        process.wait(10)
        left = children_of(str(cache))
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    assert not left, log.read_text()
    assert not list(tmp_path.glob("*.mp4*"))
    assert "Traceback" not in log.read_text(), log.read_text()


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def test_demo_says_what_is_wrong(demo: list[str], tmp_path: Path) -> None:
    demo[demo.index("--comfyui") + 1] = str(tmp_path)
    done = subprocess.run(demo, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 1
    assert "is not a ComfyUI" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_ci_script_is_sound() -> None:
    subprocess.run(["bash", "-n", str(REPO / ".ci" / "run")], check=True, timeout=10)
    text = (REPO / ".ci" / "run").read_text()
    assert "--kill-after" in text and os.access(REPO / ".ci" / "run", os.X_OK)
