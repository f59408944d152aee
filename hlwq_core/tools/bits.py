"""How many bits each layer gets: the fewest under a bound of its error, or a mean number where they reduce the loss most.

What a layer's loss is at each number of bits comes from a calibration (its output error over the inputs' moments) or from a
sensitivity file, which the command `fisher` makes of a model that can be run backward.
"""

from __future__ import annotations

import heapq
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ..checkpoints.dense import DenseModel
from ..codec import codec
from ..codec.calibration import CalibrationFile, bare
from ..codec.fidelity import Fidelity, compare
from ..errors import InputError
from ..format.bounded import read_object
from ..format.codebook import BLOCK
from ..format.packed import encoded_bytes
from ..format.places import write_beside
from ..format.sizes import BITS

# Bits that are chosen from; 2 are worse than every neighbour is worth.
CHOICES = (3, 4, 5, 6, 8)
_ROUND = 1 << 22
SENSITIVITY = "1"

Losses = dict[str, dict[int, float]]


def fewest_bits(
    source: DenseModel,
    plan: Mapping[str, int],
    bound: float,
    norms: str,
    codebook: str,
    device: torch.device,
    told: Callable[[str], None] = lambda name: None,
) -> dict[str, int]:
    """For each layer of a plan the fewest bits at which its relative squared error is at most `bound`.

    Raises:
        InputError: a layer that is above it at 8 bits too, or a bound that is none.
    """
    if not 0 < bound < 1:
        raise InputError(
            "this is no bound of an error", expected="above 0, below 1", found=bound, fix="--max-error 2e-3"
        )
    found: dict[str, int] = {}
    for name in plan:
        weight = source.tensor(name)
        for bits in BITS:
            told(name)
            # A part of the rows rules most choices out.
            some = weight[:: max(1, weight.shape[0] * weight.shape[1] // _ROUND)]
            if _error(some, bits, norms, codebook, device) <= bound * 1.1 and (
                _error(weight, bits, norms, codebook, device) <= bound
            ):
                found[name] = bits
                break
        else:
            raise InputError(
                "a layer is above the bound at 8 bits too",
                file=source.entries[name][0].path,
                tensor=name,
                expected=f"a relative squared error of at most {bound:g}",
                found=f"{_error(weight, BITS[-1], norms, codebook, device):.3e}",
                fix="keep this layer as it is, by a rule with keep, or allow a larger error",
            )
    return found


def _error(weight: torch.Tensor, bits: int, norms: str, codebook: str, device: torch.device) -> float:
    total = Fidelity()
    step = max(1, _ROUND // weight.shape[1])
    for start in range(0, weight.shape[0], step):
        part = weight[start : start + step].to(device).float()
        total.add(compare(part, codec.encode(part, bits, codebook, norms).decode()))
    return total.relative_error


def losses_by_moments(
    source: DenseModel,
    plan: Mapping[str, int],
    calibration: CalibrationFile,
    norms: str,
    codebook: str,
    device: torch.device,
    told: Callable[[str], None] = lambda name: None,
) -> Losses:
    """The squared error of each layer's outputs, a part of their power, at each number of bits.

    Raises:
        InputError: a layer of the plan that the calibration has no moments of.
    """
    found: Losses = {}
    for name in plan:
        told(name)
        inputs = calibration.inputs(name)
        if inputs is None or inputs.moments is None:
            raise InputError(
                "the calibration has no moments of a layer",
                file=calibration.path,
                tensor=name,
                fix="gather it with moments and run all of the model, or leave this layer out by a rule with keep",
            )
        weight = source.tensor(name).to(device).float()
        moments = inputs.moments.to(device)
        power = output_power(weight, moments)
        found[name] = {
            bits: output_power(weight - codec.encode(weight, bits, codebook, norms).decode(), moments)
            / max(power, 1e-30)
            for bits in CHOICES
        }
    return found


def output_power(weight: torch.Tensor, moments: torch.Tensor) -> float:
    """The mean square of the outputs `weight · x`, `weight` `[out, in]`, over inputs of these moments (see `LayerInputs`)."""
    if moments.dim() == 2:
        return float(((weight @ moments) * weight).sum(dtype=torch.float64))
    blocks = codec.to_blocks(weight).transpose(0, 1)
    return float(((blocks @ moments) * blocks).sum(dtype=torch.float64))


def allocate(shapes: Mapping[str, tuple[int, int]], losses: Losses, mean_bits: float) -> dict[str, int]:
    """The bits of each layer with the least sum of losses, at a mean of at most `mean_bits` a weight (norms not counted).

    Each layer starts with the fewest; the layer whose loss falls most for the bits that it costs gets more of them, until no
    more fit.

    Raises:
        InputError: a layer without losses, or a mean that no choice of bits reaches.
    """
    for name in shapes:
        if bare(name) not in losses:
            raise InputError(
                "the sensitivity file lacks a layer",
                tensor=name,
                expected=f"losses for all {len(shapes)} layers that are quantized",
                fix="make it anew from the whole model, or leave this layer out by a rule with keep",
            )
    if not CHOICES[0] <= mean_bits <= CHOICES[-1]:
        raise InputError(
            "no choice of bits has this mean",
            expected=f"{CHOICES[0]} to {CHOICES[-1]}",
            found=mean_bits,
            fix="--mean-bits 4.6",
        )
    sizes = {name: shape[0] * -(-shape[1] // BLOCK) * BLOCK for name, shape in shapes.items()}
    room = mean_bits * sum(sizes.values()) * (1 + 1e-12)
    found = dict.fromkeys(shapes, CHOICES[0])
    room -= sum(CHOICES[0] * size for size in sizes.values())
    queue: list[tuple[float, str, int]] = []

    def offer(name: str) -> None:
        """The step with the steepest fall, over the hull of the layer's losses: more bits at once where the next ones gain little."""
        now, curve = found[name], losses[bare(name)]
        fit = [bits for bits in CHOICES if bits > now and (bits - now) * sizes[name] <= room]
        steps = [(-(curve[now] - curve[bits]) / ((bits - now) * sizes[name]), bits) for bits in fit]
        if steps:
            best, bits = min(steps)
            heapq.heappush(queue, (best, name, bits))

    for name in shapes:
        offer(name)
    while queue:
        _, name, bits = heapq.heappop(queue)
        cost = (bits - found[name]) * sizes[name]
        if cost <= room:
            room -= cost
            found[name] = bits
        offer(name)
    return found


def save_losses(path: str | os.PathLike[str], losses: Losses, kind: str) -> None:
    """Write a sensitivity file: JSON, `hlwq.sensitivity` and, by layer, the loss at each number of bits.

    Raises:
        InputError, DiskFullError: it cannot be written.
    """
    told = {
        "hlwq.sensitivity": SENSITIVITY,
        "kind": kind,
        "layers": {name: {str(bits): loss for bits, loss in curve.items()} for name, curve in losses.items()},
    }
    with write_beside(Path(path)) as file:
        file.write(json.dumps(told, indent=1).encode() + b"\n")


def read_losses(path: str | os.PathLike[str]) -> Losses:
    """Read it again, by bare names.

    Raises:
        InputError: none of these files, or losses that are none.
    """
    told = read_object(Path(path), "the sensitivity file", InputError)
    layers = told.get("layers")
    if told.get("hlwq.sensitivity") != SENSITIVITY or not isinstance(layers, dict):
        raise InputError(
            "this is no sensitivity file",
            file=path,
            expected=f'a JSON object with "hlwq.sensitivity": "{SENSITIVITY}" and "layers"',
            found=told.get("hlwq.sensitivity"),
            fix="make one: python -m hlwq_core fisher --help",
        )
    found: Losses = {}
    for name, curve in layers.items():
        try:
            found[bare(str(name))] = {bits: float(curve[str(bits)]) for bits in CHOICES}
        except (KeyError, TypeError, ValueError, OverflowError):
            found[bare(str(name))] = {}
        if len(found[bare(str(name))]) < len(CHOICES) or not all(map(math.isfinite, found[bare(str(name))].values())):
            raise InputError(
                "a layer's sensitivities cannot be used",
                file=path,
                tensor=str(name),
                expected=f"a finite loss at each of {', '.join(map(str, CHOICES))} bits",
                found=str(curve)[:200],
                fix="make the file anew: python -m hlwq_core fisher --help",
            )
    return found


def mean_bits_of(plan: Mapping[str, int], shapes: Mapping[str, tuple[int, int]]) -> float:
    """Bits a weight of the codes alone, padding included."""
    coded = sum(encoded_bytes(shapes[name], bits)[0] for name, bits in plan.items())
    return 8 * coded / sum(shapes[name][0] * -(-shapes[name][1] // BLOCK) * BLOCK for name in plan)
