"""A sampling step of full-size LTX-2.3 in BF16, core's fp8, GGUF Q5_K and HLWQ: time, memory, bytes over the bus.

    python benchmarks/steps.py --plan speed      every format against BF16; the host's time of a layer; attention
    python benchmarks/steps.py --plan kept       with decoded weights kept in spare memory, as by default
    python benchmarks/steps.py --plan graphs     the blocks recorded as a CUDA graph, fast and exact
    python benchmarks/steps.py --plan caps       with 24 and 16 GB of memory
    python benchmarks/steps.py --plan compile    torch.compile, exact and fast
    python benchmarks/steps.py --plan lora       a LoRA of rank 32 on every layer

Each format runs in a process of its own (`full_size.py`). Two that are compared are on the card at the same time and run in
turn, several times: the host's speed differs by half from one minute to the next. Needs COMFYUI_PATH and a GPU of 80 GB;
`--small --tokens 96` tries everything on a CPU.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import parser, save

HERE = Path(__file__).resolve().parent
# What a card of 24 or 16 GB leaves to ComfyUI, GiB.
CAPS = {24: 23.5, 16: 15.5}
BUS = {"PCIe 3": 12, "PCIe 4": 25}  # GB/s that arrive
# Rounds of a comparison; the host decides at few tokens, and its speed varies.
ROUNDS = {24576: 1}
MANY_ROUNDS = 3
ONLY: str | None = None

Summary = dict[str, float | None]


class Format:
    """One format's process. Its model is there when `ready` returns.

    Attributes:
        facts: what it told of itself: size, time to load.
        runs: all of its runs.
    """

    def __init__(self, kind: str, *options: str):
        self.kind = kind
        command = [sys.executable, str(HERE / "full_size.py"), "--serve", "--format", kind, *options]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts: dict[str, Any] = {}
        self.runs: list[dict[str, Any]] = []

    def ready(self) -> Format:
        """Wait until its model is there."""
        if self.facts:
            return self
        self.facts = self._told()
        say(f"{self.kind}: ready, {self.facts['load_s']:.0f} s, {self.facts['model_gb']:.2f} GB")
        return self

    def _told(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("RESULT "):
                return json.loads(line.removeprefix("RESULT "))
        raise SystemExit(f"{self.kind} failed")

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request of full_size.py."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._told()

    def run(self, tokens: int, **request: Any) -> dict[str, Any]:
        """A run at a number of tokens."""
        run = self.ask(tokens=tokens, **request)
        self.runs.append(run | {name: value for name, value in request.items() if name != "latent"})
        say(f"  {self.kind:12} {tokens:6}: {run['step_s']:.4f} s a step, host {run['host_s']:.4f} s {request or ''}")
        return run

    def close(self) -> dict[str, Any]:
        """End it; all that it told."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
        return {**self.facts, "runs": self.runs}


BEGUN = time.perf_counter()


def say(text: str) -> None:
    print(f"{time.perf_counter() - BEGUN:5.0f} s  {text}", file=sys.stderr, flush=True)


def compare(base: Format, other: Format, tokens: int, latent: str | None = None) -> dict[str, Any]:
    """Run two in turn: the median of the ratios of their steps, and the steps. The other's first latent goes to a file."""
    pairs = []
    for i in range(ROUNDS.get(tokens, MANY_ROUNDS)):
        pairs.append((base.run(tokens)["step_s"], other.run(tokens, latent=None if i else latent)["step_s"]))
    return {"ratio": statistics.median(b / a for a, b in pairs), "steps_s": pairs}


def warm(format: Format, tokens: list[int], **request: Any) -> list[dict[str, Any]]:
    """First uses out of the way, the largest first; the runs in that order."""
    return [format.run(count, steps=3, **request) for count in reversed(tokens)]


def in_turn(
    plan: list[tuple[str, str]],
    options: list[str],
    tokens: list[int],
    results: dict[str, Any],
    keep: Any,
    extra: tuple[str, ...] = (),
) -> None:
    """Formats, one after another, against BF16, which stays.

    Args:
        plan: the name of each ratio, and the format.
        options: of all formats; `extra` ones of all but BF16.
    """
    base = Format("bf16", *options).ready()
    warm(base, tokens)
    summary: Summary = {}
    results["ratios"] = {}
    for name, kind in plan:
        format = Format(kind, *extra, *options).ready()
        warm(format, tokens)
        for count in tokens:
            found = results["ratios"][f"{name}_{count}"] = compare(base, format, count)
            summary[f"step_ratio_{name}_{count}"] = found["ratio"]
        results[kind] = format.close()
        results["bf16"] = {**base.facts, "runs": base.runs}
        keep(results, summary)
    base.close()


def speed(options: list[str], tokens: list[int], keep: Any) -> None:
    """All formats against BF16, everything resident."""
    import torch

    summary: Summary = {}
    results: dict[str, Any] = {"ratios": {}}
    with tempfile.TemporaryDirectory() as folder:
        plan = [("exact", "hlwq"), ("fast", "hlwq_fast"), ("fp8fast", "fp8"), ("gguf_q5k", "gguf_q5k")]
        plan = [entry for entry in plan if ONLY in (None, entry[0])]
        base, nxt = Format("bf16", *options), Format(plan[0][1], *options)
        warm(base.ready(), tokens, peak=True)
        for place, (name, kind) in enumerate(plan):
            format = nxt.ready()
            if place + 1 < len(plan):  # loads while this one runs no timed step yet
                nxt = Format(plan[place + 1][1], *options)
            summary[f"peak_vram_gb_{tokens[-1]}_{kind}"] = warm(format, tokens, peak=True)[0].get("peak_gb")
            if place + 1 < len(plan):
                nxt.ready()
            for count in tokens:
                if count == tokens[0] and name not in ("exact", "fast"):
                    continue
                latent = str(Path(folder) / f"{kind}-{count}.pt")
                found = compare(base, format, count, latent if name in ("exact", "fast") else None)
                results["ratios"][f"{name}_{count}"] = found
                summary[f"step_ratio_{name}_{count}"] = found["ratio"]
            if name == "exact":
                summary["model_resident_gb"] = format.facts["model_gb"]
                costs = [(base.ask(host=True), format.ask(host=True)) for _ in range(3)]
                results["host_us_linear"] = [[told["host_us_linear"] for told in pair] for pair in costs]
                summary["host_us_linear_over_bf16"] = statistics.median(b - a for a, b in results["host_us_linear"])
            if name == "fast" and ONLY is None:
                cosines = []
                for count in tokens:
                    pair = [torch.load(Path(folder) / f"{k}-{count}.pt").double() for k in ("hlwq", "hlwq_fast")]
                    cosines.append(float(torch.nn.functional.cosine_similarity(*pair, dim=0)))
                summary["fast_latent_cosine"] = min(cosines)
                attention_apart(base, format, tokens, results, summary)
            results[kind] = format.close()
            summary[f"peak_vram_gb_{tokens[-1]}_bf16"] = base.runs[0].get("peak_gb")
            results["bf16"] = {**base.facts, "runs": base.runs}
            keep(results, summary)
        base.close()


def attention_apart(base: Format, fast: Format, tokens: list[int], results: dict[str, Any], summary: Summary) -> None:
    """What is the attention's, and what the products': fast mode with core's attention, BF16 with cuDNN's."""
    largest = tokens[-1]
    plain = statistics.median(r["step_s"] for r in base.runs if r["tokens"] == largest and len(r["steps_s"]) > 1)
    for name, format, how, usual in (("fast", fast, "core", "cudnn"), ("bf16", base, "cudnn", "core")):
        ratio = format.run(largest, attention=how)["step_s"] / plain
        results["ratios"][f"{format.kind}_{how}_attention_{largest}"] = {"ratio": ratio}
        summary[f"step_ratio_{name}_{how}_attention_{largest}"] = ratio
        format.ask(tokens=tokens[0], steps=3, attention=usual)


def kept(options: list[str], tokens: list[int], keep: Any) -> None:
    """As the pack runs by default: decoded weights kept in spare memory. Half the blocks, so that BF16 fits beside it."""
    plan = [("kept", "hlwq_kept"), ("fast_kept", "hlwq_fast_kept")]
    in_turn(plan, ["--blocks", "24", *options], tokens, {"blocks": 24}, keep)


def graphs(options: list[str], tokens: list[int], keep: Any) -> None:
    """Blocks recorded as a CUDA graph, at the sizes where the host decides."""
    in_turn([("fast_graphs", "hlwq_fast"), ("exact_graphs", "hlwq_graphs")], options, tokens[:-1], {}, keep)


def caps(options: list[str], tokens: list[int], keep: Any) -> None:
    """What crosses the bus each step with 24 and 16 GB, and the time that takes on slower buses than this machine's."""
    results, summary = [], {}
    for size, free in CAPS.items():
        count = tokens[-1] if size == 24 else tokens[-2]
        for kind in ("bf16", "fp8", "gguf_q5k", "hlwq" if size == 24 else "hlwq_packed"):
            # HLWQ as by default: what is free is used for decoded weights.
            given = {"hlwq": "hlwq_kept"}.get(kind, kind)
            format = Format(given, "--free", str(free), *options).ready()
            # The bytes are what counts here; the look at the memory costs the times a little.
            run = format.run(count, peak=True)
            if kind == "hlwq_packed":
                summary["model_resident_packed_gb"] = format.facts["model_gb"]
            moved = run["bus_gb_step"]
            results.append({**format.close(), "cap_gb": size, "tokens": count, "peak_gb": run.get("peak_gb")})
            results[-1]["seconds_on"] = {name: moved / rate for name, rate in BUS.items()}
            summary[f"bus_gb_step_cap{size}_{kind}"] = moved
            keep({"results": results}, summary)


def compiled(options: list[str], tokens: list[int], keep: Any) -> None:
    """torch.compile block by block, against BF16 without it."""
    plan = [("fast_compiled", "hlwq_fast"), ("exact_compiled", "hlwq")]
    in_turn(plan, options, tokens[-2:], {}, keep, extra=("--compile",))


def lora(options: list[str], tokens: list[int], keep: Any) -> None:
    """With a LoRA against without."""
    without, patched = Format("hlwq", *options), Format("hlwq", "--lora", "32", *options)
    summary: Summary = {}
    ratios = {}
    for format in (without, patched):
        warm(format.ready(), tokens[-2:])
    for count in tokens[-2:]:
        found = ratios[f"lora_{count}"] = compare(without, patched, count)
        summary[f"lora_step_ratio_{count}"] = found["ratio"]
    summary["lora_weight_error"] = patched.ask(weight_error=True)["lora_weight_error"]
    keep({"ratios": ratios, "without": without.close(), "with": patched.close()}, summary)


PLANS = {"speed": speed, "kept": kept, "graphs": graphs, "caps": caps, "compile": compiled, "lora": lora}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--plan", choices=PLANS, required=True)
    arguments.add_argument("--tokens", default="2048,6144,24576")
    arguments.add_argument("--rounds", type=int, help="rounds of a comparison (default: more for small sizes)")
    arguments.add_argument("--only", help="of the plan `speed`, only this: exact, fast, fp8fast, gguf_q5k")
    args, options = arguments.parse_known_args()
    global MANY_ROUNDS, ONLY
    MANY_ROUNDS, ONLY = args.rounds or MANY_ROUNDS, args.only

    def keep(figures: dict[str, Any], summary: Summary) -> None:
        """After every format, so that what was measured stays if the rest fails."""
        if "--small" not in options:
            save("_".join(filter(None, ("steps", args.plan, ONLY))), figures, summary)

    shown: Summary = {}
    PLANS[args.plan](
        options,
        list(map(int, args.tokens.split(","))),
        lambda figures, summary: (shown.update(summary), keep(figures, summary)),
    )
    print(json.dumps(shown, indent=1))


if __name__ == "__main__":
    main()
