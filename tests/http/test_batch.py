"""`batch` with real ComfyUIs and the tiny model. The kills at any moment are in tests/unit/batch; HLWQ_ROUNDS=10 makes them here too."""

from __future__ import annotations

import json
import os
import sys
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


@pytest.mark.slow
@pytest.mark.skipif(not ROUNDS, reason="minutes for each: HLWQ_ROUNDS=10")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kill -9, and /proc")
@pytest.mark.timeout(900 + 1500 * ROUNDS)
@pytest.mark.parametrize("way", ["comfyui", "ray"])
def test_kills_at_any_moment(way: str, comfyui_path: Path, ray: Path) -> None:
    """12 prompts, 2 workers; kill -9 of ComfyUIs, of actors and of the driver: called again, 12 outputs and no orphan."""
    from ..attacks import batches

    sums = batches.rounds(way, 6 * ROUNDS, seed=1, most=6, report=print)
    assert not sums["faults"] and sums["outputs"] == batches.JOBS * sums["rounds"]
