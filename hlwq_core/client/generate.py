"""A video from a prompt: pick the shipped workflow, set its inputs, queue it, follow it, fetch the file.

Needs a ComfyUI that answers; `hlwq_core.client.server` starts one. `python -m hlwq_core generate` is a thin cover.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..errors import HLWQError, InputError, ServerError
from ..format.portable import portable
from ..media import MediaInfo, probe
from . import graph, grid
from .client import Client, result_files
from .graph import Nodes
from .node_progress import NodeProgress

_STEM = "hlwq_ltx23_"
# By what the picture begins or goes with, and the upscaling.
_WORKFLOWS = {
    ("", "none"): "text_to_video",
    ("", "spatial"): "two_stage",
    ("", "temporal"): "temporal_upscale",
    ("image", "none"): "image_to_video",
    ("image", "spatial"): "image_to_video_two_stage",
    ("audio", "none"): "audio_to_video",
}
Say = Callable[[str], None]


@dataclass
class Request:
    """What the user asks for; None leaves the workflow's own value.

    `width`, `height` in pixels of the result; `frames` and `fps` as sampled (a temporal upscaler doubles
    both); `seconds` instead of `frames`; `loras` as (file, strength); `settings` as `Title.input=value`.
    """

    prompt: str | None = None
    negative: str | None = None
    checkpoint: str | None = None
    text_encoder: str | None = None
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    seconds: float | None = None
    fps: float | None = None
    seed: int | None = None
    steps: int | None = None
    image: Path | None = None
    audio: Path | None = None
    loras: list[tuple[str, float]] = field(default_factory=list)
    upscale: str = "none"
    workflow: Path | None = None
    settings: list[str] = field(default_factory=list)


@dataclass
class Result:
    """One prompt's outcome: the files fetched, the loader's report, seconds by node title."""

    prompt: str
    prompt_id: str
    files: list[Path]
    media: list[MediaInfo | None]
    report: str
    node_seconds: dict[str, float]
    error: HLWQError | None = None


# ---- from the request to a workflow ------------------------------------------------------------------------------


def workflow_path(request: Request) -> Path:
    """The shipped workflow that fits the request, or the user's own."""
    if request.workflow is not None:
        return Path(request.workflow)
    sources = [name for name in ("image", "audio") if getattr(request, name)]
    kind = _WORKFLOWS.get((" ".join(sources), request.upscale))
    if kind is None:
        asked = [f"--{name}" for name in sources]
        asked += [f"--upscale {request.upscale}"] if request.upscale != "none" else []
        raise InputError(
            f"no workflow of the pack has {' and '.join(asked)} together",
            expected="--image with --upscale spatial, or one of them alone",
            found=", ".join(asked),
            fix="use one of them, or build the graph in ComfyUI, export it in API form and give it with --workflow",
        )
    return graph.SHIPPED / f"{_STEM}{kind}.json"


def build(request: Request, say: Say = lambda line: None) -> Nodes:
    """The request as a workflow, as far as that goes without asking the server."""
    nodes = graph.load(workflow_path(request))
    _check_numbers(request)
    for title, name, value in (
        ("Prompt", "text", request.prompt),
        ("Negative prompt", "text", request.negative),
        (_loader(nodes), "checkpoint", request.checkpoint),
        ("Load Text Encoder", "checkpoint", request.checkpoint),
        ("Load Text Encoder", "text_encoder", request.text_encoder),
        ("Width", "value", request.width),
        ("Height", "value", request.height),
        ("Frame rate", "value", request.fps),
        ("Seed", "noise_seed", request.seed),
    ):
        if value is not None:
            graph.put(nodes, title, name, value)
    if request.seed is not None and graph.find(nodes, "Seed, stage 2"):
        graph.put(nodes, "Seed, stage 2", "noise_seed", request.seed)
    if request.steps is not None:
        sigmas = graph.find(nodes, "Sigmas")
        own = nodes[sigmas]["inputs"].get("sigmas") if sigmas else None
        graph.put(nodes, "Sigmas", "sigmas", grid.resample(own, request.steps) if isinstance(own, str) else None)
    _set_length(nodes, request, say)
    graph.add_loras(nodes, request.loras)
    # What the settings change is known here, except inputs that only the server knows: `prepare` checks again.
    changed = copy.deepcopy(nodes)
    for setting in request.settings:
        graph.assign(changed, setting, lenient=True)
    grid.check(changed, options=True)
    return nodes


def _loader(nodes: Nodes) -> str:
    """The title of the model's loader: another one's where the VAEs are files of their own."""
    return next((title for title in ("Load Diffusion Model",) if graph.find(nodes, title)), "Load Checkpoint")


def _check_numbers(request: Request) -> None:
    """Refuse what no option's range has, before anything rests on it."""
    if request.seed is not None and not 0 <= request.seed < 2**64:
        raise InputError("this seed is out of range", expected="0 to 2**64 - 1", found=request.seed, fix="--seed 42")
    for name, strength in request.loras:
        if not -100 <= strength <= 100:
            raise InputError(
                "this strength of a LoRA is out of range",
                expected="-100 to 100",
                found=f"{name}:{strength}",
                fix=f"--lora {name}:1",
            )


def _value(nodes: Nodes, title: str) -> Any:
    node_id = graph.find(nodes, title)
    value = nodes[node_id]["inputs"].get("value") if node_id else None
    return None if graph.is_link(value) else value


def _sound_seconds(path: Path) -> float:
    """How long the sound is that the picture shall follow."""
    sound = probe(path).audio
    if sound is None:
        raise InputError("there is no sound in this file", file=path, fix="give another file with --audio")
    if not sound.duration > 0:
        raise InputError(
            "the sound has 0 samples", file=path, expected="at least one sample", fix="give another file with --audio"
        )
    if sound.duration < grid.SHORTEST_SOUND:
        raise InputError(
            "the sound is too short for LTX's audio VAE",
            file=path,
            expected=f"at least {grid.SHORTEST_SOUND:g} s",
            found=f"{sound.duration:.3f} s",
            fix="give a longer sound with --audio",
        )
    return sound.duration


def _set_length(nodes: Nodes, request: Request, say: Say) -> None:
    sound = _sound_seconds(request.audio) if request.audio is not None else None
    fps = _value(nodes, "Frame rate")
    if fps is not None and not 1 <= fps <= 240:
        raise InputError(
            "this frame rate is out of range", expected="1 to 240 frames a second", found=fps, fix="--fps 24"
        )
    frames = request.frames
    if request.seconds is not None:
        if frames is not None:
            raise InputError("--frames and --seconds say the same thing twice", fix="use one of them")
        if fps is None:
            raise InputError("the workflow has no 'Frame rate' to make frames of seconds", fix="use --frames")
        frames = grid.frames_of(request.seconds, fps)
        say(f"{request.seconds:g} s at {fps:g} frames a second: {frames} frames, {frames / fps:.3f} s")
    elif frames is None and sound is not None and fps and _value(nodes, "Length"):
        fitting = max(9, (math.floor(sound * fps) - 1) // 8 * 8 + 1)
        if fitting < _value(nodes, "Length"):
            frames = fitting
            say(f"the sound lasts {sound:.2f} s: {frames} frames")
    if frames is not None:
        graph.put(nodes, "Length", "value", frames)
    if sound is not None and fps:
        grid.check_sound(_value(nodes, "Length"), fps)


async def prepare(client: Client, request: Request, say: Say = lambda line: None) -> Nodes:
    """The request as a workflow that this server can run: files uploaded, names of files resolved.

    Everything that can be refused is refused here, before anything is queued.
    """
    nodes = build(request, say)
    info = await client.object_info(graph.classes(nodes))
    for setting in request.settings:
        graph.assign(nodes, setting, info)
    grid.check(nodes, options=True)
    asked = {request.checkpoint, request.text_encoder, *(name for name, _ in request.loras)}
    asked |= {s.partition("=")[2] for s in request.settings}
    graph.resolve(nodes, info, say, asked={a for a in asked if a})
    _same_checkpoint(nodes)
    for title, name, path in (("Start image", "image", request.image), ("Audio", "audio", request.audio)):
        if path is not None:
            graph.put(nodes, title, name, await client.upload(path))
    return nodes


def _same_checkpoint(nodes: Nodes) -> None:
    """A checkpoint set by --set for the model goes for the text encoder too: other pairs are refused anyway."""
    loader, text = graph.find(nodes, _loader(nodes)), graph.find(nodes, "Load Text Encoder")
    if loader and text and "checkpoint" in nodes[text]["inputs"]:
        nodes[text]["inputs"]["checkpoint"] = nodes[loader]["inputs"]["checkpoint"]


# ---- from the workflow to files ----------------------------------------------------------------------------------


@dataclass
class Target:
    """Where results go: a file, a folder, or (None) the current folder under ComfyUI's name."""

    path: Path | None
    count: int = 1

    @classmethod
    def of(cls, given: str | os.PathLike[str] | None, count: int, suffix: str | None) -> Target:
        """Check it before hours of work rest on it. `suffix`: the only one that a file may have, if known."""
        path = Path(given).expanduser() if given else None
        if path is None or path.is_dir():
            folder = path or Path()
        elif str(given).endswith(("/", os.sep)):
            raise InputError("there is no such folder for the result", file=path, fix="make it, or correct --output")
        else:
            folder = path.parent
            if suffix and not path.suffix:
                path = path.with_suffix(suffix)
            if suffix and path.suffix.lower() != suffix:
                raise InputError(
                    "the result is another kind of file",
                    file=path,
                    expected=f"a name with {suffix}",
                    found=path.suffix,
                    fix=f"--output {path.with_suffix(suffix).name}",
                )
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            reason = "cannot be written to" if folder.is_dir() else "does not exist"
            raise InputError(f"the folder for the result {reason}", file=folder.absolute(), fix="correct --output")
        return cls(path, count)

    def place(self, name: str, number: int, several: bool) -> Path:
        """The path for a result that ComfyUI calls `name`, of the `number`-th prompt (from 1)."""
        name = portable(Path(name.replace("\\", "/")).name)  # a server does not choose our folders, nor our devices
        if self.path is not None and not self.path.is_dir():
            stem, suffix = self.path.stem, Path(name).suffix
            if self.count > 1:
                stem += f"_{number:0{len(str(self.count))}d}"
            if not several:
                return self.path.with_name(stem + suffix)
            return _unused(self.path.with_name(stem + suffix))
        return _unused((self.path or Path()) / name)


def target_of(output: str | os.PathLike[str] | None, requests: Sequence[Request]) -> Target:
    """The target of these requests; the pack's own workflows write MP4."""
    return Target.of(output, len(requests), None if any(r.workflow for r in requests) else ".mp4")


def _unused(path: Path) -> Path:
    candidate, n = path, 1
    while candidate.exists():
        candidate, n = path.with_name(f"{path.stem}_{n}{path.suffix}"), n + 1
    return candidate


async def run_all(
    client: Client,
    jobs: Sequence[tuple[str, Nodes]],
    target: Target,
    *,
    say: Say = lambda line: None,
    quiet: bool = False,
) -> list[Result]:
    """Queue every job `(name, workflow)`, follow them one after the other, fetch what they wrote.

    A prompt that fails does not stop the others; its Result has the error. When this is cancelled (Ctrl-C),
    what it queued is taken back.
    """
    waiting: dict[str, tuple[str, Nodes, str | None]] = {}
    results = []
    try:
        for name, nodes in jobs:
            report = graph.add_report(nodes := copy.deepcopy(nodes))
            waiting[await client.queue(nodes)] = (name, nodes, report)
        for number, (prompt_id, (name, nodes, report)) in enumerate(list(waiting.items()), 1):
            if len(jobs) > 1:
                say(f"{number} of {len(jobs)}: {name}")
            result = Result(name, prompt_id, [], [], "", {})
            results.append(result)
            with NodeProgress(nodes, quiet=quiet) as watch:
                try:
                    entry = await client.follow(prompt_id, nodes, watch)
                except HLWQError as error:
                    del waiting[prompt_id]
                    if len(jobs) == 1:
                        raise
                    await client.system()  # no use in going on when the server is gone
                    result.error = error
                    say(str(error))
                    continue
            del waiting[prompt_id]
            result.node_seconds = {graph.name_of(nodes, i): s for i, s in watch.seconds.items() if i in nodes}
            files = result_files(entry)
            if not files:
                raise ServerError("the workflow ended without a file", fix="it needs a node that saves its result")
            for file in files:
                path = target.place(file["filename"], number, len(files) > 1)
                result.files.append(await client.download(file, path))
                result.media.append(_probe(path))
            if report is not None:
                result.report = "\n".join(entry["outputs"].get(report, {}).get("text", []))
    except BaseException:
        with contextlib.suppress(HLWQError, asyncio.TimeoutError):
            await asyncio.wait_for(client.cancel(*waiting), 10)
        raise
    return results


def _probe(path: Path) -> MediaInfo | None:
    return probe(path) if path.suffix.lower() in (".mp4", ".webm", ".mkv", ".mov") else None


async def generate(
    url: str,
    requests: Sequence[Request],
    output: str | os.PathLike[str] | None = None,
    *,
    check: Callable[[], None] | None = None,
    say: Say | None = None,
    quiet: bool = False,
) -> list[Result]:
    """Make the videos of all requests on the ComfyUI at `url`; the files are fetched to `output`.

    Args:
        output: a file (numbered if there are several requests), a folder, or None for the current folder.
        check: see `Client`.
    """
    say = say or (lambda line: print(line, file=sys.stderr, flush=True))
    target = target_of(output, requests)
    async with Client(url, check=check, say=say) as client:
        await client.system()
        jobs: list[tuple[str, Nodes]] = []
        for request in requests:
            # What is said about one is true for all of a batch.
            jobs.append((request.prompt or "", await prepare(client, request, say if not jobs else lambda line: None)))
        return await run_all(client, jobs, target, say=say, quiet=quiet)


def check_queue(
    workflow: Path, count: int, settings: Sequence[str], output: str | os.PathLike[str] | None
) -> tuple[Target, Nodes]:
    """Where the results go, and the workflow; what is wrong with either is said before there is a server.

    Raises:
        InputError: it cannot be read, a setting does not fit, sizes or lengths are off LTX's grid, or no place for results.
    """
    if count < 1:
        raise InputError("the number of runs must be at least 1", found=count, fix="--count 1")
    target = Target.of(output, count, None)
    nodes = graph.load(workflow)
    changed = copy.deepcopy(nodes)
    for setting in settings:
        graph.assign(changed, setting, lenient=True)
    grid.check(changed, options=False)
    return target, nodes


async def queue(
    url: str,
    workflow: Path,
    count: int = 1,
    settings: Sequence[str] = (),
    output: str | os.PathLike[str] | None = None,
    *,
    same_seed: bool = False,
    check: Callable[[], None] | None = None,
    say: Say | None = None,
    quiet: bool = False,
) -> list[Result]:
    """Run any workflow in API form `count` times, each time with its seeds one further, and fetch the files."""
    say = say or (lambda line: print(line, file=sys.stderr, flush=True))
    target, nodes = check_queue(workflow, count, settings, output)
    async with Client(url, check=check, say=say) as client:
        await client.system()
        info = await client.object_info(graph.classes(nodes))
        for setting in settings:
            graph.assign(nodes, setting, info)
        grid.check(nodes, options=False)
        graph.resolve(nodes, info, say, asked={s.partition("=")[2] for s in settings})
        steps = [0] * count if same_seed else range(count)
        jobs = [(f"{workflow.name}, run {n}", graph.reseed(nodes, step)) for n, step in enumerate(steps, 1)]
        return await run_all(client, jobs, target, say=say, quiet=quiet)


# ---- what is said at the end -------------------------------------------------------------------------------------


def describe(result: Result) -> str:
    """A result in words: each file with its streams, then the loader's report."""
    if result.error is not None:
        return f"failed: {result.prompt}\n{result.error}"
    lines = []
    for path, info in zip(result.files, result.media, strict=True):
        lines.append(str(path.absolute()))
        if info and (v := info.video):
            lines.append(
                f"  video: {v.codec}, {v.width}x{v.height}, {v.frames} frames at {float(v.rate):g} a second, "
                f"{v.duration:.3f} s"
            )
        if info and (a := info.audio):
            lines.append(f"  audio: {a.codec}, {a.rate} Hz, {a.channels} channels, {a.duration:.3f} s")
    if result.report:
        lines.append("\n".join("  " + line for line in ["decoded:", *("  " + x for x in result.report.splitlines())]))
    return "\n".join(lines)


def as_json(result: Result) -> dict[str, Any]:
    """A result for programs; durations in seconds, sizes in bytes."""

    def streams(info: MediaInfo | None) -> dict[str, Any]:
        if info is None:
            return {}
        plain = {k: copy.copy(vars(s)) if s else None for k, s in (("video", info.video), ("audio", info.audio))}
        return {"size": info.size, "duration": info.duration, **plain}

    def number(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: number(v) for k, v in value.items()}
        return float(value) if isinstance(value, Fraction) else value

    return {
        "prompt": result.prompt,
        "prompt_id": result.prompt_id,
        "files": [
            {"path": str(p.absolute()), **number(streams(i))} for p, i in zip(result.files, result.media, strict=True)
        ],
        "report": result.report,
        "node_seconds": {k: round(v, 3) for k, v in result.node_seconds.items()},
        "error": str(result.error) if result.error else None,
    }


def random_seed() -> int:
    """A seed for those who gave none."""
    return time.time_ns() % 2**32
