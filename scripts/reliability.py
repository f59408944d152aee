"""Writes docs/reliability.md of committed results: what was attacked, how often, and what came of it.

python scripts/reliability.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
RESULTS = REPO / "tests" / "attacks" / "results"
PAGE = REPO / "docs" / "reliability.md"

HEAD = """# What was attacked, and what came of it

Made by `python scripts/reliability.py` of the results in tests/attacks/results and benchmarks/results.

## Files and answers of others

Each reader is given inputs that are wrong in ever other ways, by a fuzzer that sees which lines they reach
(`python tests/attacks/fuzz.py READER --runs N --seed S`; it needs the package atheris). What may come out is the pack's own error, which
names the file and what to do; a bare error, 5 seconds, 2 GB (torch and all) or a touched file outside of the folder is a fault. The suite
does a little of it each time (tests/unit/test_readers.py).

"""
KILLS = """
## Killed while it writes

`python tests/attacks/kills.py --kills N --seed S`: kill -9 at a random moment, then the same work once more. What a user finds is what was
there before or what should be there after, and nothing else is left after the second run. At every single rename:
tests/unit/tools/test_replacing.py and test_download.py; a batch of prompts: tests/unit/batch, docs/batch.md.

"""
REST = """
## Kernels

"""
END = """
`python benchmarks/shapes.py` compares every backend with the definition on random weights, each twice. It ran on CPUs only so far.

## The same again

The same seed, file and backend give the same latents bit by bit: twice in one process (tests/unit/running, tests/comfy/test_reference.py),
recorded or not, weights kept or not (tests/comfy/test_recorded_blocks.py, test_kept_decoded.py), and the same video from a server
that loaded anew (tests/http/test_workflows.py). Backends round differently: within 1e-5 of the largest value in float32, 1e-3 in float16,
8e-3 in bfloat16 (`hlwq_core/backends/proof.py`, checked on the user's device before the first use).

## What was not tried

"""


def _table(names: tuple[str, ...], rows: list[list[Any]]) -> list[str]:
    lines = ["| " + " | ".join(names) + " |", "| " + " | ".join("---" for _ in names) + " |"]
    return lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def page() -> str:
    """The page of the results."""
    fuzz, kills = _read(RESULTS / "fuzz.json"), _read(RESULTS / "kills.json")
    sanitizer = _read(REPO / "benchmarks" / "results" / "sanitizer.json")
    lines = _table(
        ("reader", "inputs", "seed", "seconds", "peak MB", "faults"),
        [
            [name, f"{r['runs']:,}", r["seed"], r["seconds"], r["peak_mb"], r["fault"] or "none"]
            for name, r in sorted(fuzz.items())
        ],
    )
    killed = _table(
        ("work", "kills", "of them too late", "seed", "faults"),
        [[name, r["kills"], r["ended"], r["seed"], "; ".join(r["faults"]) or "none"] for name, r in kills.items()],
    )
    kernels = (
        f"Under compute-sanitizer ({', '.join(sorted(sanitizer['tools']))}): see benchmarks/results/sanitizer.json."
        if "tools" in sanitizer
        else "Under compute-sanitizer: benchmarks/results/sanitizer.json (`python benchmarks/sanitize.py`)."
    )
    untried = [
        "A million inputs for each reader: the table says how many it were. Those that are missing in it ran with 2,000 to 4,000 inputs.",
        "Works that are missing in the table of kills were killed 6 to 60 times, without a fault.",
        "A soak of 200 prompts with two checkpoints, LoRA on and off, interrupts and /free.",
        "Random weights on a card (`benchmarks/shapes.py`); macOS and Windows.",
    ]
    return (
        HEAD
        + "\n".join(lines)
        + "\n"
        + KILLS
        + "\n".join(killed)
        + "\n"
        + REST
        + kernels
        + "\n"
        + END
        + "\n".join(f"- {line}" for line in untried)
        + "\n"
    )


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
