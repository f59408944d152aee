"""README's table, those of docs/speed.md, docs/performance.md, docs/quality.md, and the plots, from results/*.json.

python benchmarks/report.py            rewrite the parts between the comments, and the figures of quality in summary.json
python benchmarks/report.py --check    say whether they are up to date (exit code 1 if not)
python benchmarks/report.py --plots    also results/*.png; needs matplotlib
"""

from __future__ import annotations

import functools
import json
import statistics
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
SPEED = HERE.parent / "docs" / "speed.md"
PERFORMANCE = HERE.parent / "docs" / "performance.md"
QUALITY = HERE.parent / "docs" / "quality.md"
SUMMARY = HERE / "results" / "summary.json"
TOKENS = (2048, 6144, 24576)
NAMES = {"bf16": "BF16", "fp8": "core's fp8, fast", "gguf_q5k": "GGUF Q5_K", "hlwq": "HLWQ", "hlwq_packed": "HLWQ"}
ROWS = (
    ("steps_speed", "exact", "HLWQ exact, decoded at each use"),
    ("steps_speed_exact", "exact", ""),
    ("steps_kept", "kept", "HLWQ exact, decoded weights kept"),
    ("steps_graphs", "exact_graphs", "HLWQ exact, blocks recorded"),
    ("steps_speed", "fast", "HLWQ fast"),
    ("steps_speed_fast", "fast", ""),
    ("steps_speed", "fast", "HLWQ fast, blocks not recorded"),
    ("steps_compile", "exact_compiled", "HLWQ exact, torch.compile"),
    ("steps_compile", "fast_compiled", "HLWQ fast, torch.compile"),
    ("steps_speed", "fp8fast", "core's fp8, fast matmul"),
    ("steps_speed", "gguf_q5k", "GGUF Q5_K"),
)


@functools.lru_cache(maxsize=16)
def load(name: str) -> dict[str, Any]:
    """A result, `{}` where it was not measured."""
    path = HERE / "results" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def step_ratio(figures: dict[str, Any], tokens: int, name: str) -> float | None:
    """A format's step over BF16's.

    Where BF16 waits for the GPU, its time hardly varies and the host's disturbances only ever add to the other's: the
    fastest runs count. Where both wait for the host, runs beside each other: the median of their ratios.
    """
    ratios = figures.get("ratios", {})
    entry = ratios.get(f"{name}_{tokens}")
    if entry is None:
        return None
    if tokens == TOKENS[0]:
        return entry["ratio"]
    base = [
        pair[0]
        for key, other in ratios.items()
        if key.endswith(f"_{tokens}") and "steps_s" in other
        for pair in other["steps_s"]
    ]
    return min(pair[1] for pair in entry["steps_s"]) / min(base)


def speed_rows() -> list[tuple[str, list[float | None]]]:
    """Name and ratio at each number of tokens. A second result of the same thing replaces what it has."""
    rows: list[tuple[str, list[float | None]]] = []
    for file, name, title in ROWS:
        ratios = [step_ratio(load(file), tokens, name) for tokens in TOKENS]
        if title:
            rows.append((title, ratios))
        else:
            rows[-1] = rows[-1][0], [b if b is not None else a for a, b in zip(rows[-1][1], ratios, strict=True)]
    return rows


def capped() -> list[list[str]]:
    """The headline's rows: what a step takes on cards of 24 and 16 GB."""
    summary, rows = load("summary"), []
    for run in load("steps_caps").get("results", []):
        kind = run["format"].removesuffix("_kept")
        result = run["runs"][0]
        peak = summary.get(f"peak_vram_gb_{TOKENS[-1]}_{kind}") if run["cap_gb"] == 24 else None
        rows.append(
            [
                f"{run['cap_gb']} GB, {run['tokens']:,} tokens",
                NAMES[kind] + (", **pack the rest**" if kind == "hlwq_packed" else ""),
                f"{run['model_gb']:.1f}",
                "" if peak is None else f"{peak:.1f}",
                f"{result['bus_gb_step']:.1f}",
                *(f"{seconds:.1f} s" if seconds else "–" for seconds in run["seconds_on"].values()),
                f"{result['step_s']:.2f} s",
            ]
        )
    return rows


def markdown() -> str:
    """The tables of docs/speed.md."""
    machine = load("steps_speed")["machine"]
    lines = [
        f"Measured on one {machine['gpu']}, torch {machine['torch']}, ComfyUI 0.30.0 with dynamic VRAM, at full size (48 blocks,",
        "random weights, joint audio-video latents, Euler, cfg 1). A card of 24 or 16 GB is this one with the rest of its memory",
        "taken by another program. The last column is for this machine's bus, which moves about 48 GB/s; on PCIe 3 (12 GB/s) and",
        "PCIe 4 (25 GB/s) the bytes that do not fit cost each step what the two columns before it say:",
        "",
        "| card | transformer | model, GB | needs at most, GB | over the bus a step, GB | PCIe 3 | PCIe 4 | step here |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *("| " + " | ".join(row) + " |" for row in capped()),
        "",
        "GGUF Q5_K has 5.5 bits a weight, and a smaller error than HLWQ's 5.125 unless those are calibrated: [quality.md](quality.md).",
        "",
        "A step as a ratio to BF16 that lies in video memory as a whole, 80 GB card (the fastest runs of both; at 2,048 tokens,",
        "where BF16 waits for the host, the median of neighbouring runs; *decoded weights kept*, *exact, blocks recorded* and",
        "*torch.compile* with 24 of 48 blocks, so that BF16 fits beside them). *exact* here has ComfyUI's attention, *fast* cuDNN's:",
        "",
        "| | " + " | ".join(f"{tokens:,} tokens" for tokens in TOKENS) + " |",
        "| --- | --- | --- | --- |",
    ]
    for title, ratios in speed_rows():
        lines.append(f"| {title} | " + " | ".join("" if r is None else f"{r:.2f}" for r in ratios) + " |")
    return "\n".join(lines)


SIZES = {6144: "768×512, 5 s", 24576: "1536×1024, 5 s"}


def sampled_runs() -> dict[str, Any]:
    """Whole sampling runs, of the results that hold them, the newest last."""
    return {**load("runs"), **load("runs_fast"), **load("runs_fast_24576")}


def cards() -> str:
    """The table of README.md: what a user of such a card gets."""
    runs: dict[tuple[int, int], dict[str, dict[str, Any]]] = {}
    for run in load("steps_caps")["results"]:
        runs.setdefault((run["cap_gb"], run["tokens"]), {})[run["format"].split("_")[0]] = run
    lines = [
        "| your card | video | weights, BF16 → HLWQ | over the bus each step | which PCIe 4 takes |",
        "| --- | --- | --- | --- | --- |",
    ]
    for (cap, tokens), formats in runs.items():
        both = [formats["bf16"], formats["hlwq"]]
        cells = [f"{cap} GB", SIZES[tokens]]
        weights = [f"{run['model_gb']:.1f}" for run in both]
        bus = [f"{run['runs'][0]['bus_gb_step']:.1f}" for run in both]
        waits = [f"{list(run['seconds_on'].values())[1]:.1f}" for run in both]
        cells += [f"{a} → **{b}** {unit}" for (a, b), unit in ((weights, "GB"), (bus, "GB"), (waits, "s"))]
        cells[2] += ", with *pack the rest*" if formats["hlwq"]["format"].startswith("hlwq_packed") else ""
        lines.append("| " + " | ".join(cells) + " |")
    found, machine = sampled_runs(), load("runs")["machine"]
    exact, fast = (found[f"{mode}_{TOKENS[-1]}_8"]["ratio"] for mode in ("exact", "fast"))
    whole = video_seconds()
    later, first = (
        [f"{whole[f'{kind}_two_stage_{case}']:.{places}f}" for kind in ("exact", "fast", "bf16")]
        for case, places in (("next", 1), ("first", 0))
    )
    lines += [
        "",
        f"With room for all of BF16 (one {machine['gpu']}), 5 s of 1536×1024 with sound in two stages take **{later[0]} s** from Run to the",
        f"file, **{later[1]} s** in *fast* mode, and {later[2]} s in BF16; the first after a start {first[0]}, {first[1]} and {first[2]} s. "
        f"Sampling alone, 8 steps at",
        f"that size, takes {exact:.2f} and {fast:.2f} of BF16's time. The small cards are one {load('steps_speed')['machine']['gpu']} with "
        "the rest of its memory taken.",
    ]
    return "\n".join(lines)


def whole_runs() -> str:
    """Whole sampling runs, of the results that hold them: the table of docs/performance.md."""
    found = sampled_runs()
    machine = load("runs")["machine"]
    lines = [
        f"One {machine['gpu']}, torch {machine['torch']}, ComfyUI {machine['comfyui']} with dynamic VRAM, 48 blocks, joint "
        "audio-video latents, Euler, cfg 1, as",
        "installed. The median of the pairs' ratios to BF16, and of the seconds; the time of the first step over that of a later "
        "one.",
        "",
        "| run | mode | ratio | HLWQ, s | BF16, s | pairs | first step, HLWQ | first step, BF16 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for tokens in TOKENS:
        for steps in (8, 3):
            for mode in ("exact", "fast"):
                entry = found.get(f"{mode}_{tokens}_{steps}")
                if entry is None:
                    continue
                base, ours = zip(*entry["pairs"], strict=True)
                seconds = [statistics.median(run["run_s"] for run in runs) for runs in (ours, base)]
                first = [
                    statistics.median(run["first_step_s"] - run["step_s"] for run in runs) for runs in (ours, base)
                ]
                cells = [f"{tokens:,} tokens, {steps} steps", mode, f"{entry['ratio']:.2f}"]
                cells += [f"{s:.2f}" for s in seconds] + [str(len(base))] + [f"+{s:.2f} s" for s in first]
                lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Sizes: 6,144 tokens are 768×512×121, 24,576 are 1536×1024×121."]
    return "\n".join(lines)


VIDEOS = {"t2v": "text to video, 768×512", "two_stage": "two stages, 1536×1024"}
PROMPTS = {"first": "the first after a start", "next": "the next, another text", "seed": "another seed only"}
PARTS = {
    "text": ("CLIPTextEncode",),
    "sampling": ("SamplerCustomAdvanced",),
    "decoding and saving": (
        "HLWQDecodeSave", "VAEDecodeTiled", "LTXVAudioVAEDecode", "CreateVideo", "SaveVideo",
    ),
}  # fmt: skip


def video_seconds(result: str = "video") -> dict[str, float]:
    """Seconds from Queue to the file, by format, workflow and prompt."""
    runs = load(result).get("runs", {})
    return {name: statistics.median(run["seconds"] for run in found) for name, found in runs.items()}


def videos() -> str:
    """Whole workflows through a server: two tables of docs/performance.md."""
    found, machine = video_seconds(), load("video")["machine"]
    rounds = {1: "One run"}.get(count := min(map(len, load("video")["runs"].values())), f"{count} runs")
    lines = [
        f"One {machine['gpu']}, torch {machine['torch']}, ComfyUI {machine['comfyui']}, 121 frames with sound; seconds from Queue to the "
        "file, in brackets the ratio",
        f"to BF16. {rounds} of each; a server ran the three prompts of a workflow in one format, files in the system's cache.",
        "",
        "| workflow | prompt | BF16 | exact | fast |",
        "| --- | --- | --- | --- | --- |",
    ]
    for workflow, title in VIDEOS.items():
        for case, told in PROMPTS.items():
            base = found[f"bf16_{workflow}_{case}"]
            ours = [found[f"{mode}_{workflow}_{case}"] for mode in ("exact", "fast")]
            cells = [title, told, f"{base:.1f}", *(f"{s:.1f} ({s / base:.2f})" for s in ours)]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *_spent(), "", *_on_smaller_cards()]
    return "\n".join(lines)


def _spent() -> list[str]:
    """Where the seconds of a next prompt go."""
    runs, rows, left = load("video")["runs"], [], 0.0
    for workflow, title in VIDEOS.items():
        for kind, name in (("bf16", "BF16"), ("exact", "exact"), ("fast", "fast")):
            found = runs[f"{kind}_{workflow}_next"]
            parts = [[sum(run["nodes"].get(c, 0) for c in classes) for run in found] for classes in PARTS.values()]
            spent = list(map(statistics.median, parts))
            left = max(left, statistics.median(run["seconds"] for run in found) - sum(spent))
            rows.append("| " + " | ".join([title, name, *(f"{s:.1f}" for s in spent)]) + " |")
    return [
        f"Where the seconds of the next prompt go (what is left, up to {left:.1f} s, lies in other nodes and between nodes):",
        "",
        "| workflow | format | " + " | ".join(PARTS) + " |",
        "| --- " * (2 + len(PARTS)) + "|",
        *rows,
    ]


CAPS = (24, 16, 12)


def _on_smaller_cards() -> list[str]:
    """The two stages where another program holds the rest of the card."""
    lines = [
        "Two stages where another program holds all of the card but so much; one run of each:",
        "",
        "| free | prompt | BF16 | exact | fast |",
        "| --- | --- | --- | --- | --- |",
    ]
    for free in CAPS:
        found = video_seconds(f"video_{free}gb")
        for case in ("first", "next"):
            base, cells = found[f"bf16_two_stage_{case}"], []
            for mode in ("exact", "fast"):
                seconds = found.get(f"{mode}_two_stage_{case}")
                cells.append("not measured" if seconds is None else f"{seconds:.1f} ({seconds / base:.2f})")
            lines.append("| " + " | ".join([f"{free} GiB", PROMPTS[case], f"{base:.1f}", *cells]) + " |")
    return lines


QUALITY_ROWS = (
    ("author5", "the author's encoder"),
    ("search5", "`--norms search`"),
    ("bias5", "the same, biases corrected by mean inputs"),
    ("blocks5", "`--calibration`, moments of blocks"),
    ("full5", "`--calibration`, full moments"),
    ("search4", "`--norms search`, 4 bits"),
    ("full4", "`--calibration`, full moments, 4 bits"),
    ("search6", "`--norms search`, 6 bits"),
    ("q4_k", "GGUF Q4_K"),
    ("q5_k", "GGUF Q5_K"),
    ("q6_k", "GGUF Q6_K"),
    ("q8_0", "GGUF Q8_0"),
    ("fp8", "fp8 (e4m3, a scale a tensor)"),
    ("int8_rows", "int8, a scale a row"),
    ("int8_rotated", "int8 after rotation, a scale a row"),
    ("search5_fp8", "`--norms search`, fast mode FP8, by its definition"),
    ("search5_int8", "`--norms search`, fast mode INT8, by its definition"),
    ("ends_4_6", "4.6 bits: 5 in the first and last blocks, 4 elsewhere"),
    ("moments_4_6", "4.6 bits by input moments × weight error"),
    ("fisher_4_6", "4.6 bits by gradients (`fisher`)"),
    ("fisher_4_6_full", "4.6 bits by gradients, `--calibration` with full moments"),
)


def quality(model: str, end: str) -> str:
    """One model's table of docs/quality.md."""
    found = load("quality").get("models", {}).get(model, {})
    parts = list(dict.fromkeys(part for row in found.values() for part in row.get("parts", {})))
    head = ["encoder", "bits a weight", "weights", "outputs", end, *(f"{end}, {part}" for part in parts)]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for name, title in QUALITY_ROWS:
        if name in found:
            row = found[name]
            cells = [title, f"{row['bits']:.3f}", *(f"{row[key]:.2e}" for key in ("weight_mse", "output"))]
            error = f" ± {row['end_deviation']:.1e}" if "end_deviation" in row else ""
            cells += [f"{row['end']:.2e}{error}", *(f"{row['parts'][part]:.2e}" for part in parts)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary() -> str:
    """summary.json with the figures of quality as they are."""
    kept = {key: value for key, value in load("summary").items() if not key.startswith("quality_")}
    figures = {
        f"quality_{model}_{method}_{key}": row[key]
        for model, rows in load("quality").get("models", {}).items()
        for method, row in rows.items()
        for key in ("bits", "weight_mse", "output", "end")
    }
    return json.dumps(dict(sorted({**kept, **figures}.items())), indent=1) + "\n"


def plots() -> None:
    """Bars of both tables."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = speed_rows()
    figure, axes = pyplot.subplots(1, len(TOKENS), figsize=(13, 4), sharey=True)
    for i, (axis, tokens) in enumerate(zip(axes, TOKENS, strict=True)):
        values = [ratios[i] or 0 for _, ratios in rows]
        axis.barh([title for title, _ in rows], values, color=["#4b8bbe" if "HLWQ" in t else "#999" for t, _ in rows])
        axis.axvline(1, color="black", linewidth=1)
        axis.set_title(f"{tokens:,} video tokens")
        axis.set_xlabel("step, BF16 = 1")
        axis.invert_yaxis() if not i else None
    figure.tight_layout()
    figure.savefig(HERE / "results" / "steps.png", dpi=90)
    runs = load("steps_caps")["results"]
    figure, axis = pyplot.subplots(figsize=(8, 4))
    labels = [f"{run['cap_gb']} GB: {NAMES[run['format'].removesuffix('_kept')]}" for run in runs]
    axis.barh(
        labels,
        [run["runs"][0]["bus_gb_step"] for run in runs],
        color=["#4b8bbe" if "HLWQ" in t else "#999" for t in labels],
    )
    axis.invert_yaxis()
    axis.set_xlabel("GB over the bus a step")
    figure.tight_layout()
    figure.savefig(HERE / "results" / "bus.png", dpi=90)


def with_part(text: str, name: str, part: str) -> str:
    """The text with what is between the comments of that name replaced."""
    begin, end = f"<!-- {name}: written by benchmarks/report.py -->", f"<!-- /{name} -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{part}\n{end}{after}"


def main() -> None:
    parts = (
        (README, "cards", cards()),
        (SPEED, "speed", markdown()),
        (PERFORMANCE, "videos", videos()),
        (PERFORMANCE, "runs", whole_runs()),
        (QUALITY, "whisper", quality("whisper", "KL")),
        (QUALITY, "mpnet", quality("mpnet", "1 − cosine")),
    )
    made: dict[Path, str] = {SUMMARY: summary()}
    for path, name, part in parts:
        made[path] = with_part(made.get(path) or path.read_text(), name, part)
    if "--check" in sys.argv:
        sys.exit(any(path.read_text() != text for path, text in made.items()))
    for path, text in made.items():
        path.write_text(text)
    if "--plots" in sys.argv:
        plots()


if __name__ == "__main__":
    main()
