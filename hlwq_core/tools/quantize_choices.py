"""What `quantize` is asked for beyond a recipe: a calibration, a bound of the error, a mean number of bits."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from ..checkpoints.dense import DenseModel
from ..codec.calibration import CalibrationFile, bare, values_of
from ..errors import InputError
from .bits import allocate, fewest_bits, losses_by_moments, read_losses
from .job import Tally


def calibration_for(path: str | os.PathLike[str], source: DenseModel, plan: dict[str, int]) -> CalibrationFile:
    """The calibration, if it is of this model.

    Raises:
        InputError: see `CalibrationFile.check`.
    """
    file = CalibrationFile(path)
    there = {bare(name): name for name in source.entries}
    known = {n: values_of(source.tensor(there[bare(n)])) for n in file.identity if bare(n) in there}
    file.check({name: source.entries[name][1].shape for name in plan}, known)
    return file


@dataclass(frozen=True)
class Wish:
    """How the user wants bits to be chosen, where not by the recipe alone."""

    max_error: float | None
    mean_bits: float | None
    sensitivity: str | os.PathLike[str] | None

    def plan(
        self,
        source: DenseModel,
        plan: dict[str, int],
        norms: str,
        codebook: str,
        device: torch.device,
        known: CalibrationFile | None,
        tally: Tally,
    ) -> dict[str, int]:
        """The recipe's layers with their bits.

        Raises:
            InputError: wishes that do not go together, or that cannot be met.
        """
        if self.max_error is not None and self.mean_bits is not None or self.sensitivity and self.mean_bits is None:
            raise InputError(
                "these choices of bits do not go together",
                expected="--max-error alone, or --mean-bits with --sensitivity or --calibration",
                fix="leave one of them out",
            )
        if self.max_error is not None:
            return fewest_bits(source, plan, self.max_error, norms, codebook, device, tally.tell)
        if self.mean_bits is None:
            return plan
        shapes = {name: (entry.shape[0], entry.shape[1]) for name in plan for entry in [source.entries[name][1]]}
        if self.sensitivity is not None:
            return allocate(shapes, read_losses(self.sensitivity), self.mean_bits)
        if known is None:
            raise InputError(
                "a mean number of bits needs to know which layers matter",
                fix="give --sensitivity or --calibration as well",
            )
        losses = losses_by_moments(source, plan, known, norms, codebook, device, tally.tell)
        return allocate(shapes, {bare(name): curve for name, curve in losses.items()}, self.mean_bits)
