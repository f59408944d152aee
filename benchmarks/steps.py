"""A sampling step of full-size LTX-2.3 in BF16, core's fp8, GGUF Q5_K and HLWQ: time, memory, bytes over the bus.

    python benchmarks/steps.py --plan speed      every format at 2,048, 6,144 and 24,576 tokens; the host's time of a layer
    python benchmarks/steps.py --plan caps       with 24 and 16 GB of memory
    python benchmarks/steps.py --plan compile    torch.compile, exact and fast
    python benchmarks/steps.py --plan lora       a LoRA of rank 32 on every layer

Each format runs in a process of its own (`full_size.py`), one after another on one card. Needs COMFYUI_PATH and a GPU of
48 GB and more for BF16; `--small --tokens 96` tries everything on a CPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import parser, save

HERE = Path(__file__).resolve().parent
# What a card of 24 or 16 GB leaves to ComfyUI, GiB.
CAPS = {24: 23.5, 16: 15.5}
BUS = {"PCIe 3": 12, "PCIe 4": 25}  # GB/s that arrive


def run(kind: str, *options: str) -> dict[str, Any]:
    """One process of full_size.py; its result."""
    command = [sys.executable, str(HERE / "full_size.py"), "--format", kind, *options]
    print(" ".join(command[1:]), file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=900)
    if done.returncode != 0:
        print(f"{kind} failed", file=sys.stderr)
        return {"format": kind, "runs": [], "failed": done.returncode}
    return json.loads(done.stdout.strip().splitlines()[-1])


def at(result: dict[str, Any], tokens: int, what: str = "step_s") -> float | None:
    """A figure of a run at a number of tokens."""
    return next((r.get(what) for r in result["runs"] if r["tokens"] == tokens), None)


def ratio(a: float | None, b: float | None) -> float | None:
    """a / b where both were measured."""
    return None if a is None or b is None else a / b


def speed(options: list[str], tokens: list[int]) -> tuple[dict[str, Any], dict[str, float | None]]:
    """All formats, everything resident."""
    import torch

    given = ["--tokens", ",".join(map(str, tokens)), *options]
    with tempfile.TemporaryDirectory() as folder:
        latents = ["--latents", str(Path(folder) / "step")]
        base = run("bf16", *given, "--host")
        exact = run("hlwq", *given, "--host", *latents)
        fast = run("hlwq_fast", *given, *latents)
        kept = run("hlwq_kept", *given)
        fp8, gguf = run("fp8", *given), run("gguf_q5k", *given)
        packed = run("hlwq_packed", *given[:1], str(tokens[0]), *options)
        cosines = []
        for count in tokens:
            pair = [Path(folder) / f"step-{kind}-{count}.pt" for kind in ("hlwq", "hlwq_fast")]
            if all(path.exists() for path in pair):
                cosines.append(torch.nn.functional.cosine_similarity(*(torch.load(p).double() for p in pair), dim=0))
    summary: dict[str, float | None] = {
        "host_us_linear_over_bf16": exact["host_us_linear"] - base["host_us_linear"],
        "fast_latent_cosine": float(min(cosines)) if cosines else None,
        "model_resident_gb": exact["model_gb"],
        "model_resident_packed_gb": packed.get("model_gb"),
    }
    for name, result in (("exact", exact), ("kept", kept), ("fast", fast), ("fp8fast", fp8), ("gguf_q5k", gguf)):
        for count in tokens:
            if name in ("exact", "kept") or count != 2048:
                summary[f"step_ratio_{name}_{count}"] = ratio(at(result, count), at(base, count))
    largest = tokens[-1]
    for name, result in (("bf16", base), ("fp8", fp8), ("gguf_q5k", gguf), ("hlwq", exact)):
        summary[f"peak_vram_gb_{largest}_{name}"] = at(result, largest, "peak_gb")
    return {"results": [base, exact, kept, fast, fp8, gguf, packed]}, summary


def caps(options: list[str], tokens: list[int]) -> tuple[dict[str, Any], dict[str, float | None]]:
    """What crosses the bus each step with 24 and 16 GB, and the time that takes on slower buses than this machine's."""
    results, summary = [], {}
    for size, free in CAPS.items():
        count = tokens[-1] if size == 24 else tokens[-2]
        for kind in ("bf16", "fp8", "gguf_q5k", "hlwq" if size == 24 else "hlwq_packed"):
            result = run(kind, "--tokens", str(count), "--free", str(free), *options)
            moved = at(result, count, "bus_gb_step")
            result["cap_gb"] = size
            if moved is not None:
                result["seconds_on"] = {name: moved / rate for name, rate in BUS.items()}
            results.append(result)
            summary[f"bus_gb_step_cap{size}_{kind}"] = moved
    return {"results": results}, summary


def compiled(options: list[str], tokens: list[int]) -> tuple[dict[str, Any], dict[str, float | None]]:
    """torch.compile block by block, against BF16 without it."""
    given = ["--tokens", ",".join(map(str, tokens[-2:])), *options]
    base = run("bf16", *given)
    results = {kind: run(kind, "--compile", *given) for kind in ("bf16", "hlwq", "hlwq_fast")}
    summary = {
        f"step_ratio_{name}_compiled_{count}": ratio(at(results[kind], count), at(base, count))
        for name, kind in (("fast", "hlwq_fast"), ("exact", "hlwq"))
        for count in tokens[-2:]
    }
    return {"results": [base, *results.values()]}, summary


def lora(options: list[str], tokens: list[int]) -> tuple[dict[str, Any], dict[str, float | None]]:
    """With a LoRA against without."""
    given = ["--tokens", ",".join(map(str, tokens[-2:])), *options]
    without, patched = run("hlwq", *given), run("hlwq", "--lora", "32", *given)
    summary = {f"lora_step_ratio_{count}": ratio(at(patched, count), at(without, count)) for count in tokens[-2:]}
    summary["lora_weight_error"] = patched.get("lora_weight_error")
    return {"results": [without, patched]}, summary


PLANS = {"speed": speed, "caps": caps, "compile": compiled, "lora": lora}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--plan", choices=PLANS, required=True)
    arguments.add_argument("--tokens", default="2048,6144,24576")
    args, options = arguments.parse_known_args()
    figures, summary = PLANS[args.plan](options, list(map(int, args.tokens.split(","))))
    if "--small" not in options:
        save(f"steps_{args.plan}", figures, summary)
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
