"""Sizes, lengths and steps that LTX takes: looked for in a workflow, and refused with the nearest valid value.

ComfyUI rounds them down in silence, or stops when everything is loaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..models.ltx import LIMITS
from . import graph
from .graph import Nodes

SQUARE = LIMITS.size  # pixels of a latent's side
GROUP = LIMITS.frames  # frames of a latent, after the first
LARGEST = 16384  # ComfyUI's own limit
MOST_STEPS = 10_000
SHORTEST_SOUND = 0.1  # seconds that core's audio VAE encodes; of 0.08 it makes nothing
# Core's nodes that begin a latent of LTX, all with width, height and length.
_LATENTS = ("EmptyLTXVLatentVideo", "LTXVImgToVideo")
_OPTIONS = {"Width": "--width", "Height": "--height", "Length": "--frames"}
_QUOTIENT = re.compile(r"\s*a\s*/\s*(\d+)\s*")


def nearest(value: int, step: int, offset: int = 0, least: int = 1, most: int = LARGEST) -> tuple[int, ...]:
    """The valid values `step * n + offset` next to `value`, the nearer one first."""
    least, most = least + (offset - least) % step, most - (most - offset) % step
    low = (value - offset) // step * step + offset
    both = sorted({min(max(v, least), most) for v in (low, low + step)}, key=lambda v: abs(v - value))
    return tuple(both)


def check_size(width: int, height: int, frames: int, step: int) -> None:
    """LTX works on 32-pixel squares (64 in the result when it starts at half size) and on 8 n + 1 frames.

    Raises:
        InputError: a value is off the grid; names the nearest ones.
    """
    check_side("width", width, step, "--width ")
    check_side("height", height, step, "--height ")
    check_frames("frames", frames, "--frames ")


def check_side(name: str, value: int, step: int, before: str, behind: str = "") -> None:
    """Refuse a width or height in pixels that is no multiple of `step`; `before` and `behind` the right one it is what to do."""
    if step <= value <= LARGEST and value % step == 0:
        return
    valid = nearest(value, step, least=step)
    raise InputError(
        f"the {name} {value} is not a multiple of {step}" if value % step else f"the {name} {value} is out of range",
        expected=" or ".join(map(str, valid)),
        found=value,
        fix=f"{before}{valid[0]}{behind}",
    )


def check_frames(name: str, value: int, before: str, behind: str = "") -> None:
    """Refuse a number of frames that is not 8 n + 1; `before` and `behind` the right one it is what to do."""
    if 1 <= value <= LARGEST and value % GROUP == 1:
        return
    valid = nearest(value, GROUP, 1)
    raise InputError(
        f"{value} {name} cannot be made: LTX needs 8 n + 1",
        expected=" or ".join(map(str, valid)),
        found=value,
        fix=f"{before}{valid[0]}{behind}",
    )


def check_sound(frames: Any, fps: float) -> None:
    """Refuse a video that is shorter than any sound that could go with it."""
    if type(frames) is int and frames >= 1 and frames / fps < SHORTEST_SOUND:
        enough = GROUP * math.ceil((SHORTEST_SOUND * fps - 1) / GROUP) + 1
        raise InputError(
            "so short a sound cannot be encoded by LTX's audio VAE",
            expected=f"at least {SHORTEST_SOUND:g} s: {enough} frames",
            found=f"{frames} frames, {frames / fps:.3f} s",
            fix=f"--frames {enough}",
        )


@dataclass(frozen=True)
class Origin:
    """Where a number of a workflow comes from: the input that holds it, and what it is divided by on its way."""

    node_id: str
    name: str
    value: Any
    divisor: int = 1


def origin(nodes: Nodes, node_id: str, name: str) -> Origin | None:
    """Follow an input through primitive values and halvings; None where it comes from elsewhere."""
    divisor = 1
    for _ in range(len(nodes) + 1):
        inputs = nodes.get(node_id, {}).get("inputs", {})
        if name not in inputs:
            return None
        value = inputs[name]
        if not graph.is_link(value):
            return Origin(node_id, name, value, divisor)
        node_id = value[0]
        kind = nodes.get(node_id, {}).get("class_type", "")
        if kind.startswith("Primitive"):
            name = "value"
        elif kind == "ComfyMathExpression":
            quotient = _QUOTIENT.fullmatch(str(nodes[node_id]["inputs"].get("expression", "")))
            if quotient is None or not 0 < int(quotient[1]) <= LARGEST:
                return None
            divisor *= int(quotient[1])
            name = "values.a"
        else:
            return None
    return None  # a circle: ComfyUI says so


def check(nodes: Nodes, *, options: bool) -> None:
    """Refuse what LTX's nodes of a workflow cannot make.

    Args:
        nodes: the workflow.
        options: Width, Height and Length have options of their own; else `--set` names them.

    Raises:
        InputError: a size, length or schedule does not fit; with the nearest valid value.
    """
    for node_id, axis in _sized(nodes):
        found = origin(nodes, node_id, axis)
        if found is None or type(found.value) is not int:
            continue
        title = graph.name_of(nodes, found.node_id)
        fix = f'--set "{title}.{found.name}=', '"'
        if options and title in _OPTIONS and found.name == "value":
            fix = f"{_OPTIONS[title]} ", ""
        if axis != "length":
            check_side(axis, found.value, SQUARE * found.divisor, *fix)
        elif found.divisor == 1:
            check_frames("frames", found.value, *fix)
    for node_id, node in nodes.items():
        if node["class_type"] == "ManualSigmas" and isinstance(text := node["inputs"].get("sigmas"), str):
            points_of(text, graph.name_of(nodes, node_id))


def _sized(nodes: Nodes) -> Iterator[tuple[str, str]]:
    for node_id, node in nodes.items():
        if node["class_type"] in _LATENTS:
            yield from ((node_id, axis) for axis in ("width", "height", "length"))


def frames_of(seconds: float, fps: float) -> int:
    """The valid number of frames nearest to a length."""
    longest = nearest(LARGEST, GROUP, 1)[0]
    if not 0 < seconds < math.inf:
        raise InputError("the length must be more than 0 seconds", found=seconds, fix="--seconds 5")
    if seconds * fps > longest:
        raise InputError(
            "the length is out of range",
            expected=f"up to {longest / fps:.3f} seconds ({longest} frames)",
            found=seconds,
            fix=f"--seconds {math.floor(longest / fps)}",
        )
    return GROUP * max(1, round((seconds * fps - 1) / GROUP)) + 1


def points_of(sigmas: str, title: str = "Sigmas") -> list[float]:
    """The points of a noise schedule, as core's ManualSigmas finds them: whatever stands between the numbers.

    Raises:
        InputError: there are fewer than two.
    """
    points = [float(number) for number in re.findall(r"[-+]?(?:\d*\.?\d+)", sigmas)]
    if len(points) < 2 or not any(points):
        raise InputError(
            "this noise schedule has no steps",
            expected="at least two numbers with commas between them, from much noise to little",
            found=sigmas,
            fix=f'--set "{title}.sigmas=1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0"',
        )
    return points


def resample(sigmas: str, steps: int) -> str:
    """The same noise schedule in another number of steps (linear between its points; its own number: itself)."""
    if not 1 <= steps <= MOST_STEPS:
        raise InputError(
            "a video needs at least one step" if steps < 1 else "so many steps make no video",
            expected=f"1 to {MOST_STEPS}",
            found=steps,
            fix="--steps 8, or leave it out",
        )
    points = points_of(sigmas)
    at = [i * (len(points) - 1) / steps for i in range(steps + 1)]
    low = [min(int(a), len(points) - 2) for a in at]
    values = [points[i] + (points[i + 1] - points[i]) * (a - i) for a, i in zip(at, low, strict=True)]
    return ", ".join(f"{v:.6g}" if v else "0.0" for v in values)
