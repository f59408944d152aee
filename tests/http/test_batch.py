"""`batch` with real ComfyUIs and the tiny model. The kills at any moment are in tests/unit/batch; HLWQ_ROUNDS=10 makes them here too."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hlwq_core import cli

from .test_generate import PROMPT, check_film

REPO = Path(__file__).resolve().parents[2]
ROUNDS = int(os.environ.get("HLWQ_ROUNDS", "0"))
SMALL = ["--width", "64", "--height", "64", "--frames", "9", "--fps", "12", "--steps", "1"]


@pytest.mark.timeout(240)
def test_a_file_of_jobs(server: Any, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Columns for an option, a picture, and an input by its title; killed and called again in the middle of it."""
    jobs = tmp_path / "jobs.csv"
    picture = tiny / "input" / "start.png"
    lines = [["prompt", "seed", "image", "Save.codec"], [PROMPT, "1-2", "", "h264"], [PROMPT, "3", picture, "h265"]]
    lines += [[PROMPT, "4", "", "no such codec"]]
    jobs.write_text("".join(",".join(map(str, line)) + "\r\n" for line in lines), encoding="utf-8")
    output = tmp_path / "out"
    words = ["batch", str(jobs), *SMALL, "--server", server.url, "--output", str(output), "--json"]
    assert cli.main(words) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["made"], said["failed"]) == (3, 1) and "no such codec" in said["results"][3]["error"]
    for result in said["results"][:3]:
        (file,) = result["files"]
        check_film(Path(file["path"]), 9)
        assert result["seconds"] > 0 and "packed tensors" in result["report"]
    assert len({result["workflow"] for result in said["results"][:3]}) == 3
    before = {path: path.stat().st_mtime_ns for path in output.glob("*.mp4")}
    assert cli.main(words) == 1
    assert {path: path.stat().st_mtime_ns for path in output.glob("*.mp4")} == before


def comfyuis(base: Path) -> list[int]:
    """Process numbers of the ComfyUIs whose models are those of `base`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
                variables = (entry / "environ").read_bytes()
            except OSError:
                continue
            if (
                any(w.endswith(b"/main.py") for w in words)
                and state != "Z"
                and f"HLWQ_TEST={base}".encode() in variables
            ):
                found.append(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not ROUNDS, reason="minutes for each: HLWQ_ROUNDS=10")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kill -9, and /proc")
@pytest.mark.timeout(60 + 900 * ROUNDS)
@pytest.mark.parametrize("way", ["here", "ray"])
def test_kills_at_any_moment(
    way: str, server: Any, ray: Path, comfyui_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 prompts, 2 workers; kill -9 of ComfyUIs and of the driver: called again, 12 outputs and no orphan."""
    monkeypatch.setenv("HLWQ_TEST", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{ray}{os.pathsep}{REPO}")
    for name, value in (("AUTH_MODE", "disabled"), ("USAGE_STATS_ENABLED", "0"), ("worker_niceness", "0")):
        monkeypatch.setenv(f"RAY_{name}", value)
    for seed in range(ROUNDS):
        chance = random.Random(seed)
        jobs, output, log = tmp_path / f"{seed}.txt", tmp_path / f"{seed}", tmp_path / f"{seed}.log"
        jobs.write_text("\n".join([PROMPT] * 12))
        words = ["batch", str(jobs), *SMALL, "--workers", "2", "--comfyui", str(comfyui_path), "--output", str(output)]
        words += ["--base-directory", str(server.base), *(["--ray", "local"] if way == "ray" else [])]
        words += ["--comfyui-args", "--cpu", "--disable-api-nodes"]
        kills = 0
        while True:
            with log.open("ab") as out:
                driver = subprocess.Popen([sys.executable, "-m", "hlwq_core", *words], cwd=REPO, stdout=out, stderr=out)
            try:
                while driver.poll() is None and kills < 3:
                    with_some = len(list(output.glob("*.mp4"))) + chance.randint(0, 2)
                    while driver.poll() is None and len(list(output.glob("*.mp4"))) < with_some:
                        time.sleep(0.1)
                    time.sleep(chance.uniform(0, 3))
                    if driver.poll() is None and (found := comfyuis(tmp_path)):
                        kills += 1
                        os.kill(chance.choice([driver.pid, *found]), signal.SIGKILL)
                code = driver.wait(400)
            finally:
                driver.kill()
                driver.wait()
            if code == 0:
                break
            assert code == -9, log.read_text()[-4000:]
            time.sleep(5)
            assert not comfyuis(tmp_path), "an orphan"
        time.sleep(5)
        assert not comfyuis(tmp_path), "an orphan"
        made = list(output.glob("*.mp4"))
        assert len(made) == 12
        for path in made:
            check_film(path, 9)
