"""From what a user asks for to a workflow: pick the shipped one, set its inputs, make its files those that the server has."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from . import graph, grid
from .client import Client
from .graph import Nodes

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
    both); `seconds` instead of `frames`; `loras` as (file, strength); `settings` as `Title.input=value`; `step`
    for any workflow, not only of LTX: how far each seed that stands in it is moved on;
    `calibration`: the name of what HLWQ Calibrate shall gather meanwhile, with these `moments`.
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
    step: int | None = None
    calibration: str | None = None
    moments: str = "blocks"


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
    if request.step is None:
        _set_length(nodes, request, say)
    if request.loras:
        graph.add_loras(nodes, request.loras)
    if request.calibration is not None:
        graph.add_calibration(nodes, request.calibration, request.moments)
    # What the settings change is known here, except inputs that only the server knows: `prepare` checks again.
    changed = copy.deepcopy(nodes)
    for setting in request.settings:
        graph.assign(changed, setting, lenient=True)
    grid.check(changed, options=request.step is None)
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
    from ..media import probe

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
    grid.check(nodes, options=request.step is None)
    asked = {request.checkpoint, request.text_encoder, *(name for name, _ in request.loras)}
    asked |= {s.partition("=")[2] for s in request.settings}
    graph.resolve(nodes, info, say, asked={a for a in asked if a})
    if request.step is None:
        _same_checkpoint(nodes)
    else:
        nodes = graph.reseed(nodes, request.step)
    for title, name, path in (("Start image", "image", request.image), ("Audio", "audio", request.audio)):
        if path is not None:
            graph.put(nodes, title, name, await client.upload(path))
    return nodes


def _same_checkpoint(nodes: Nodes) -> None:
    """A checkpoint set by --set for the model goes for the text encoder too: other pairs are refused anyway."""
    loader, text = graph.find(nodes, _loader(nodes)), graph.find(nodes, "Load Text Encoder")
    if loader and text and "checkpoint" in nodes[text]["inputs"]:
        nodes[text]["inputs"]["checkpoint"] = nodes[loader]["inputs"]["checkpoint"]


def random_seed() -> int:
    """A seed for those who gave none."""
    return time.time_ns() % 2**32
