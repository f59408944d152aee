"""The benchmark of several cards runs with two processes on the processor: its times mean something on cards only."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "several_gpus.py"


@pytest.mark.parametrize("options", [["--cards", "cpu,cpu", "--modes", "exact"]])
def test_two_processes(comfyui_path, options):
    command = [sys.executable, str(PROGRAM), "--small", "--blocks", "2", "--tokens", "96", "--steps", "3", *options]
    environment = os.environ | {"COMFYUI_PATH": str(comfyui_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    (relative,) = re.findall(r"relative ([\d.e+-]+);", done.stderr)
    assert float(relative) < 1e-5
