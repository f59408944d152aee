"""The comparison of random weights runs on a CPU too, and notices a backend that is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
WRONG = """
import runpy, sys
sys.path.insert(0, {repo!r}); sys.path.insert(0, {benchmarks!r})
from hlwq_core.backends import eight_bit
right = eight_bit.rotate
import hlwq_core.backends.eager as eager, dataclasses
wrong = dataclasses.replace(eager.BACKEND.fast["int8"], rotate=lambda x: right(2 * x, "int8"))
eager.BACKEND.fast["int8"] = wrong
sys.argv = ["shapes.py", "--count", "5"]
runpy.run_path({benchmarks!r} + "/shapes.py", run_name="__main__")
"""


@pytest.mark.parametrize("wrong", [False, True])
def test_random_weights(tmp_path: Path, wrong: bool) -> None:
    benchmarks = REPO / "benchmarks"
    code = WRONG.format(repo=str(REPO), benchmarks=str(benchmarks))
    command = (
        [sys.executable, "-c", code]
        if wrong
        else [sys.executable, str(benchmarks / "shapes.py"), "--count", "20", "--jobs", "2"]
    )
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OUT": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert (done.returncode != 0) == wrong, done.stdout + done.stderr
    found = json.loads((tmp_path / "shapes_cpu.json").read_text())
    assert ("differ" in done.stderr) == wrong == bool(found["faults"])
    assert found["weights"] == found["compared"]["eager"] == (5 if wrong else 20)
