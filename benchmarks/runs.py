"""Whole sampling runs of full-size LTX-2.3 beside BF16: what a user waits for, from the call of the sampler to its return.

    python benchmarks/runs.py --tokens 2048,6144,24576 --pairs 7,7,3

BF16 and HLWQ are in one process and on the card together, as installed, and run in turn: the host's speed differs by half from
one minute to the next. A figure is the median of the pairs' ratios; `…_low` is the lower end of its 95 % interval by ranks.
Needs COMFYUI_PATH and a GPU of 140 GB (of 80 with `--blocks 24`); `--small --tokens 96` tries everything on a CPU.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import logging
import math
import pstats
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import core
from common import parser, save

core.boot()

import full_size  # noqa: E402  after ComfyUI has chosen its allocator
import torch  # noqa: E402

MODES = ("exact", "fast")
# Runs before any is timed: first uses, and what is made once for a size.
WARM_RUNS = 2


def low_end(ratios: list[float]) -> float:
    """Lower end of the 95 % interval of the median, by ranks: no distribution is assumed. The least of fewer than six."""
    count = len(ratios)
    below, rank = 0.0, 0
    while rank < count:
        below += math.comb(count, rank) / 2**count
        if below > 0.025:
            break
        rank += 1
    return sorted(ratios)[max(0, rank - 1)]


class Runs:
    """Runs of one model, each of its own seed.

    Args:
        name: of the model, for what is printed.
        model: ComfyUI's patcher.
    """

    def __init__(self, name: str, model: Any):
        self.name, self.model = name, model
        self._seed = 0

    def run(self, tokens: int, steps: int, seed: int | None = None) -> dict[str, Any]:
        """Seconds of one run, of its first step and of the later ones; nothing waits for the card in between. `latent` is what
        it sampled."""
        import comfy.nested_tensor
        import comfy.sample
        import comfy.samplers

        frames, height, width = full_size.SIZES[tokens]
        audio = max(8, int(126 * frames / 16))
        latent = comfy.nested_tensor.NestedTensor(
            [torch.zeros(1, 128, frames, height, width), torch.zeros(1, 8, audio, 16)]
        )
        inner = self.model.model.diffusion_model
        width = inner.inner_dim + inner.audio_inner_dim
        context = torch.randn(1, full_size.TEXT_TOKENS, width, generator=torch.Generator().manual_seed(1))
        text = [[context, {"unprocessed_ltxav_embeds": True, "frame_rate": 24.0}]]
        self._seed += 1
        noise = comfy.sample.prepare_noise(latent, self._seed if seed is None else seed)
        clock = _Clock()
        sigmas = torch.linspace(1.0, 0.0, steps + 1)
        with torch.inference_mode():
            clock.mark()
            begun = time.perf_counter()
            result = comfy.sample.sample_custom(
                self.model, noise, 1.0, comfy.samplers.sampler_object("euler"), sigmas, text, text, latent,
                callback=lambda *_: clock.mark(), disable_pbar=True, seed=self._seed,
            )  # fmt: skip
            clock.wait()
            run_s = time.perf_counter() - begun
        for part in result.unbind():
            assert torch.isfinite(part).all(), f"{self.name}: the latents hold NaN"
        seconds = clock.seconds()
        self.latent = torch.cat([part.flatten() for part in result.unbind()])
        return {"run_s": run_s, "first_step_s": seconds[0], "step_s": statistics.median(seconds[1:] or seconds)}

    def recorded_as_not(self, tokens: int, steps: int) -> bool:
        """Whether a run by recordings gives the same latents, bit by bit, as one without."""
        latents = []
        recordings = self.model.model.diffusion_model.hlwq_recordings
        for recordings._refused in (False, True):
            self.run(tokens, steps, seed=0)
            latents.append(self.latent)
        recordings._refused = False
        return torch.equal(*latents)


class _Clock:
    """Moments on the card's own time, where there is one."""

    def __init__(self) -> None:
        self._cuda = torch.cuda.is_available()
        self._marks: list[Any] = []

    def mark(self) -> None:
        if not self._cuda:
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()

    def seconds(self) -> list[float]:
        """Between neighbouring marks."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        return [a.elapsed_time(b) / 1e3 if self._cuda else b - a for a, b in pairs]


def compare(base: Runs, other: Runs, tokens: int, steps: int, pairs: int) -> dict[str, Any]:
    """Pairs of runs in turn; first the one, then the other."""
    runs = []
    for i in range(pairs):
        both = (base, other) if i % 2 else (other, base)
        pair = {which.name: which.run(tokens, steps) for which in both}
        runs.append([pair[base.name], pair[other.name]])
    ratios = [b["run_s"] / a["run_s"] for a, b in runs]
    found = {"ratio": statistics.median(ratios), "low": low_end(ratios), "pairs": runs}
    say(
        f"{other.name:6} {tokens:6} tokens, {steps:2} steps: {found['ratio']:.3f} (from {found['low']:.3f}), "
        + ", ".join(f"{b['run_s']:.2f}/{a['run_s']:.2f}" for a, b in runs)
        + " s, first step "
        + ", ".join(f"{b['first_step_s']:.2f}/{a['first_step_s']:.2f}" for a, b in runs[-2:])
        + f", step {runs[-1][1]['step_s']:.3f}/{runs[-1][0]['step_s']:.3f}"
    )
    return found


BEGUN = time.perf_counter()


def say(text: str) -> None:
    print(f"{time.perf_counter() - BEGUN:5.0f} s  {text}", file=sys.stderr, flush=True)


def load(kind: str, blocks: int, small: bool) -> Runs:
    begun = time.perf_counter()
    name = {"hlwq_fast_kept": "fast", "hlwq_installed": "exact"}.get(kind, kind)
    model = full_size.load(kind, blocks, small)
    say(f"{name} is ready after {time.perf_counter() - begun:.0f} s, {model.model_size() / 1e9:.1f} GB")
    return Runs(name, model)


def profile(runs: Runs, tokens: int, steps: int, out: Path) -> None:
    """Where the host's time of a run goes."""
    profiler = cProfile.Profile()
    profiler.enable()
    run = runs.run(tokens, steps)
    profiler.disable()
    with open(out / f"profile_{runs.name}_{tokens}.txt", "w") as file:
        print(json.dumps(run), file=file)
        for order in ("cumulative", "tottime"):
            pstats.Stats(profiler, stream=file).sort_stats(order).print_stats(70)


def kernels(runs: Runs, tokens: int, out: Path) -> None:
    """Where the card's time of two steps goes, kernel by kernel."""
    runs.run(tokens, 2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        runs.run(tokens, 2)
    with open(out / f"kernels_{runs.name}_{tokens}.txt", "w") as file:
        print(
            profiler.key_averages().table("self_device_time_total", row_limit=60, max_name_column_width=120), file=file
        )


def measure(args: argparse.Namespace, keep: Callable[[dict[str, Any], dict[str, float]], None]) -> None:
    """Every mode against BF16, at every size and number of steps."""
    sizes, steps, pairs = (list(map(int, given.split(","))) for given in (args.tokens, args.steps, args.pairs))
    figures: dict[str, Any] = {"blocks": args.blocks, "warm_runs": WARM_RUNS}
    summary: dict[str, float] = {}
    base = load("bf16", args.blocks, args.small)
    for tokens in reversed(sizes):
        base.run(tokens, min(steps))
    for mode in args.modes.split(","):
        other = load({"exact": "hlwq_installed", "fast": "hlwq_fast_kept"}[mode], args.blocks, args.small)
        for tokens, count_of_pairs in zip(sizes, pairs * len(sizes), strict=False):
            warm = [other.run(tokens, max(3, min(steps))) for _ in range(WARM_RUNS)]
            say(f"{mode} {tokens}, first runs: " + ", ".join(f"{run['run_s']:.2f} s" for run in warm))
            if args.profile:
                profile(other, tokens, min(steps), args.profile)
                if mode == MODES[0]:
                    profile(base, tokens, min(steps), args.profile)
            if args.kernels:
                for which in (base, other):
                    kernels(which, tokens, args.kernels)
            firsts = []
            for count in steps:
                found = figures[f"{mode}_{tokens}_{count}"] = compare(base, other, tokens, count, count_of_pairs)
                summary[f"run_ratio_{mode}_{tokens}_{count}"] = found["ratio"]
                summary[f"run_ratio_{mode}_{tokens}_{count}_low"] = found["low"]
                firsts += [run["first_step_s"] - run["step_s"] for _, run in found["pairs"]]
                if tokens > 2048:
                    summary[f"first_step_over_step_s_{mode}_{tokens}"] = statistics.median(firsts)
                keep(figures, summary)
            if hasattr(other.model.model.diffusion_model, "hlwq_recordings"):
                same = figures[f"{mode}_{tokens}_recorded_as_not"] = other.recorded_as_not(tokens, min(steps))
                say(f"{mode} {tokens}: the same latents recorded or not: {same}")
                keep(figures, summary)
        del other


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--tokens", default="2048,6144", help="numbers of video tokens")
    arguments.add_argument("--steps", default="8,3", help="steps of a run")
    arguments.add_argument("--pairs", default="7", help="of runs, for each number of tokens or for all")
    arguments.add_argument("--modes", default=",".join(MODES))
    arguments.add_argument("--blocks", type=int, default=48)
    arguments.add_argument("--name", default="runs", help="of the result")
    arguments.add_argument("--profile", type=Path, metavar="FOLDER", help="also where the host's time goes")
    arguments.add_argument("--kernels", type=Path, metavar="FOLDER", help="also where the card's time goes")
    arguments.add_argument("--verbose", action="store_true", help="also what the pack tells")
    arguments.add_argument("--small", action="store_true", help="narrow layers: to try this program on a CPU")
    args = arguments.parse_args()

    def keep(figures: dict[str, Any], summary: dict[str, float]) -> None:
        if not args.small and args.blocks == 48:
            save(args.name, figures, summary)

    if args.verbose:
        logging.getLogger("hlwq").setLevel(logging.DEBUG)
        logging.getLogger("hlwq").addHandler(logging.StreamHandler())
    with torch.inference_mode():  # as ComfyUI runs its nodes
        measure(args, keep)


if __name__ == "__main__":
    main()
