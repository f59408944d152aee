"""Prompts an hour on several ComfyUIs of one machine, over those on one: `python -m hlwq_core batch`, as a user calls it.

    python benchmarks/batch.py --base FOLDER --gpus 1,2,4

FOLDER is a ComfyUI base folder with models/ and custom_nodes/ (this pack in it). Each number of cards gets `--jobs` prompts a card, in turn
and as often as `--rounds` says. The rate is counted from the output that comes when each worker has made one to the last but as
many, so neither starts nor the end, when some have nothing to do, are in it. Needs COMFYUI_PATH. On a machine without a card,
`--workers 1,2` tries it on the CPU; its workers share the cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import REPO, parser, save


def rate(times: list[float], workers: int) -> float:
    """Outputs an hour.

    Args:
        times: when each output was there, in seconds.
        workers: how many made them.
    """
    steady = sorted(times)[workers - 1 : len(times) - workers + 1]
    if len(steady) < 2 or steady[-1] <= steady[0]:
        raise SystemExit("too few jobs for a rate: more --jobs")
    return (len(steady) - 1) / (steady[-1] - steady[0]) * 3600


def run(args: argparse.Namespace, count: int, folder: Path) -> float:
    """A batch on so many workers; outputs an hour."""
    prompts, output = folder / "prompts.txt", folder / "out"
    prompts.write_text("A ginger cat plays the piano in a jazz club\n" * (args.jobs * count))
    width, height, frames = args.size.split("x")
    command = [sys.executable, "-m", "hlwq_core", "batch", str(prompts), "--output", str(output), "--json"]
    command += ["--width", width, "--height", height, "--frames", frames, "--base-directory", str(args.base)]
    command += ["--workers", str(count)] if args.workers else ["--gpus", ",".join(map(str, range(count)))]
    command += ["--set", "Load Checkpoint.mode=fast"] if args.fast else []
    done = subprocess.run(command, cwd=REPO, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"the batch on {count} ended with {done.returncode}")
    lines = (output / ".hlwq-batch" / "journal.jsonl").read_text().splitlines()
    return rate([event["time"] for event in map(json.loads, lines) if event["event"] == "made"], count)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--base", type=Path, required=True, help="a ComfyUI base folder")
    which = options.add_mutually_exclusive_group(required=True)
    which.add_argument("--gpus", help="numbers of cards, with commas, the first 1")
    which.add_argument("--workers", help="the same on the CPU")
    options.add_argument("--jobs", type=int, default=8, help="a worker (default: %(default)s)")
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--size", default="768x512x121", help="default: %(default)s")
    options.add_argument("--fast", action="store_true", help="fast mode")
    args = options.parse_args()
    if not os.environ.get("COMFYUI_PATH"):
        raise SystemExit("where is ComfyUI? Set COMFYUI_PATH to its folder")
    counts = [int(number) for number in (args.gpus or args.workers).split(",")]
    if counts[0] != 1:
        options.error("the first number is 1: the others are compared with it")
    rates: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(args.rounds):
        for count in counts:
            with tempfile.TemporaryDirectory(prefix="hlwq-batch-") as folder:
                rates[count].append(run(args, count, Path(folder)))
                print(f"{count}: {rates[count][-1]:.1f} an hour", flush=True)
    figures = {
        str(count): {
            "an_hour": found,
            "over_one": statistics.median(n / one for n, one in zip(found, rates[1], strict=True)),
        }
        for count, found in rates.items()
    }
    summary = {f"batch_rate_over_one_{n}": float(figures[str(n)]["over_one"]) for n in counts[1:]}  # type: ignore[arg-type]
    print(json.dumps(figures))
    save(
        "batch" if args.gpus else "batch_cpu", {"size": args.size, "rates": figures}, dict(summary) if args.gpus else {}
    )


if __name__ == "__main__":
    main()
