"""The figures of README and docs are those of the results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "report.py"


def test_readme_says_what_was_measured():
    done = subprocess.run([sys.executable, str(PROGRAM), "--check"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"run `python benchmarks/report.py`: {done.stderr}"
