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
(`python tests/attacks/fuzz.py READER --runs N --seed S`; it needs the package atheris). Where there are several seeds, so many such calls are
added up, some ended by `--seconds`. What may come out is the pack's own error, which
names the file and what to do; a bare error, 5 seconds, 2 GB (torch and all) or a touched file outside of the folder is a fault. The suite
does a little of it each time (tests/unit/test_readers.py).

"""
KILLS = """
## Killed while it writes

`python tests/attacks/kills.py --kills N --seed S`: kill -9 at a random moment, then the same work once more. What a user finds is what was
there before or what should be there after, and nothing else is left after the second run.

"""
RENAMES = """
Before every single rename, link and removal: quantize and `--force` in tests/unit/tools/test_quantize.py and test_replacing.py, repair in
test_replacing.py, download in test_download.py, a video in tests/unit/media/test_partial.py, and before every call of the system that
changes a file a batch's journal in tests/unit/batch/test_journal.py.

## Batches that are killed

`python tests/attacks/batches.py --kills N --seed S`: 12 jobs, two workers, kill -9 at random moments of a ComfyUI, of an actor of Ray, of
the command itself, which is called again until it ends. Then there are 12 outputs, each whole, each once in the journal and in the
manifest, no try was counted, no temporary file and no process is left. "gone": the longest time until the ComfyUIs (and Ray) had
followed a command that was killed (agents of Ray that do nothing by then end a minute after the rest). Stand-ins are small servers with
ComfyUI's routes (tests/unit/batch/fake_comfyui.py).

"""
SOAK = """
## A soak

`python tests/attacks/soak.py`: one ComfyUI 0.30.0 on a CPU with the tiny model; each prompt with one of two checkpoints, exact or asking for
fast mode (which a CPU has not: decoded exactly), with a LoRA or without, of another size, seed and text encoder. Interrupts at random
moments, prompts taken out of the queue, `/free` in between. One and the same prompt comes at the begin, every so often, and at the
end. Memory may grow by 5 % from ten prompts on; no open file, mapped model, thread, socket or temporary file may be more.

"""
SOAK_CARD = """
The same on a card (`--card`), where weights come and go; what the process holds of the card is looked at as well. The pictures are small: of
fast mode the products with the text's 1,024 tokens run in 8 bits.

"""
REST = """
## Kernels

"""
END = """
## The same again

The same seed, file and backend give the same latents bit by bit: twice in one process and in two processes, exact and in 8 bits
(tests/comfy/test_same_again.py, on a CPU), recorded or not, weights kept or not (tests/comfy/test_recorded_blocks.py,
test_kept_decoded.py), and the same video from a server that loaded anew (tests/http/test_workflows.py). Backends round differently:
within 1e-5 of the largest value in float32, 1e-3 in float16, 8e-3 in bfloat16 (`hlwq_core/backends/proof.py`, checked on the user's
device before the first use).

## What the code must not do

tests/unit/test_dangers.py reads every file of the pack: no pickle, `eval`, `exec`, `torch.load`; no shell; nothing of the network at import,
and none at all in the rooms that load and run models; no listening port. Each rule is tried on snippets that break it. While files are
worked on, a test refuses every connection (tests/unit/test_security.py), and so does one while ComfyUI imports the pack
(tests/unit/test_house.py).

## What was not tried

"""


BATCHES = {"stand-ins": "stand-ins", "comfyui": "ComfyUI, tiny model", "ray": "ComfyUI as Ray's actors"}


def _table(names: tuple[str, ...], rows: list[list[Any]]) -> list[str]:
    lines = ["| " + " | ".join(names) + " |", "| " + " | ".join("---" for _ in names) + " |"]
    return lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def page() -> str:
    """The page of the results."""
    fuzz, kills = _read(RESULTS / "fuzz.json"), _read(RESULTS / "kills.json")
    others = {name: _read(RESULTS / f"{name}.json") for name in ("batches", "soak", "soak_card")}
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
    return (
        HEAD
        + "\n".join(lines)
        + "\n"
        + KILLS
        + "\n".join(killed)
        + "\n"
        + RENAMES
        + "\n".join(_batches(others["batches"]))
        + "\n"
        + SOAK
        + "\n".join(_soak(others["soak"]))
        + "\n"
        + SOAK_CARD
        + "\n".join(_soak(others["soak_card"]))
        + "\n"
        + REST
        + kernels
        + "\n\n"
        + _shapes()
        + "\n"
        + END
        + "\n".join(f"- {line}" for line in _untried(others, fuzz, kills))
        + "\n"
    )


def _batches(results: dict[str, Any]) -> list[str]:
    rows = [
        [
            BATCHES[name],
            ", ".join(f"{count} {'command' if kind == 'driver' else kind}" for kind, count in r["kills"].items()),
            r["rounds"],
            r["outputs"],
            f"{r['gone']} s",
            "; ".join(r["faults"]) or "none",
        ]
        for name, r in results.items()
    ]
    earlier = [
        f"- {BATCHES[name]}, {sum(call['kills'].values())} kills, seed {call['seed']}: {call['fault']}."
        for name, result in results.items()
        for call in result.get("earlier", ())
    ]
    told = ["", "Calls before, each of which found a fault that is mended since:", "", *earlier] if earlier else []
    return [*_table(("what", "kills", "rounds", "outputs", "gone", "faults"), rows), *told]


def _soak(result: dict[str, Any]) -> list[str]:
    names = (
        "prompts",
        "rss_mb",
        "own_mb",
        "card_mb",
        "threads",
        "files",
        "mapped",
        "sockets",
        "temporary",
        "unfinished",
    )
    names = tuple(name for name in names if name in result["looks"][0])
    ended = ", ".join(f"{count} {name}" for name, count in result["ended"].items())
    told = (
        f"{result['prompts']} prompts, seed {result['seed']}: {ended}. The same prompt {result['latents']['compared']} times: "
        f"{result['latents']['kinds']} kind of latents. Faults: {'; '.join(result['faults']) or 'none'}."
    )
    return [told, "", *_table(names, [[look[name] for name in names] for look in result["looks"]])]


def _shapes() -> str:
    lines = [
        "`python benchmarks/shapes.py`: random weights in groups of bits, packing, dtype and kind of size; compared with a definition of its\n"
        "own in float64, each twice.\n"
    ]
    rows = []
    for where, device in (("a card", "cuda"), ("a CPU", "cpu")):
        result = _read(REPO / "benchmarks" / "results" / f"shapes_{device}.json")
        compared = ", ".join(f"{name} {count:,}" for name, count in result["compared"].items())
        if result["triton_interpreted"]:
            compared += " (Triton's kernel in Triton's interpreter)"
        faults = "; ".join(result["faults"]) or "none"
        rows.append([where, f"{result['weights']:,}", result["groups"], result["seed"], compared, faults])
    return "\n".join(lines + _table(("on", "weights", "groups", "seed", "compared", "faults"), rows))


def _untried(results: dict[str, dict[str, Any]], fuzz: dict[str, Any], kills: dict[str, Any]) -> list[str]:
    batches, lines = results["batches"], []
    if few := [f"{name} {result['runs']:,}" for name, result in sorted(fuzz.items()) if result["runs"] < 10**6]:
        lines.append(f"A million inputs for every reader. Fewer: {', '.join(few)}.")
    if missing := [name for name in ("download", "download over another revision", "save") if name not in kills]:
        lines.append(f"Kills of {', '.join(missing)}: 6 to 60 only, without a fault.")
    if kinds := [words for name, words in BATCHES.items() if name not in batches]:
        lines.append(f"Batches that are killed: {', '.join(kinds)}.")
    lines += [
        f"A soak of more than {results['soak']['prompts']} prompts; on a card with pictures that are large enough for fast mode.",
        "Kills of a machine of a Ray cluster; Ray's clusters of more than one machine.",
        "The same latents on two machines: processors and cards of other kinds sum in another order.",
        "macOS and Windows.",
    ]
    return lines


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
