"""The rate of a batch: neither the start nor the end is in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def test_the_rate_is_of_the_time_when_all_have_something_to_do():
    # Two workers, an output each ten seconds; the first came late, the last was alone.
    times = [90, 100, 100, 110, 110, 120, 120, 150]
    code = f"import batch; print(batch.rate({times}, 2), batch.rate([0, 10, 20], 1))"
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    both, one = map(float, done.stdout.split())
    assert both == 5 / 20 * 3600 and one == 360
