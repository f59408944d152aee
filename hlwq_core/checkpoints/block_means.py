"""Layers hurt by means of their blocks, found in the codes alone, without the original.

The Hadamard matrix has a constant row: a block whose weights have a mean has an outlier at coordinate 0. With the author's
norms it is clipped to the outermost level, with searched norms it takes the resolution of all the others. Either way codes
at coordinate 0 are the outermost ones far more often than at other coordinates: in 0.1 to 0.3 of the blocks of such a layer,
where layers without means have 0.0007 at 5 bits (the author's norms) or 0.01 (searched ones) at each coordinate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..format.codebook import BLOCK
from .detect import sample_codes

# More than so many blocks in which only coordinate 0 is outermost, and more than chance explains (in standard deviations).
NOTABLE = 0.05
_DEVIATIONS = 5.0
_SHOWN = 5


@dataclass(frozen=True)
class Outermost:
    """Of a sample of a layer's blocks, the share whose code is an outermost one.

    Attributes:
        first: at coordinate 0.
        others: at the other coordinates, their mean.
        blocks: how many blocks were looked at.
    """

    first: float
    others: float
    blocks: int

    @property
    def notable(self) -> bool:
        """Whether the blocks have means that cost precision."""
        chance = _DEVIATIONS * math.sqrt(self.others * (1 - self.others) / self.blocks)
        return self.first - self.others > max(NOTABLE * (1 - self.others), chance)


def outermost_of(codes: torch.Tensor, bits: int) -> Outermost:
    """Count in codes uint8 `[blocks, 128]`."""
    edge = (codes == 0) | (codes == (1 << bits) - 1)
    first, both = int(edge[:, 0].sum()), int(edge.sum())
    blocks = codes.shape[0]
    return Outermost(first / blocks, (both - first) / (blocks * (BLOCK - 1)), blocks)


def outermost(codes: torch.Tensor, norms: torch.Tensor, bits: int, packing: str) -> Outermost | None:
    """Count in a sample of a layer; None where all blocks are zero. Arguments as `detect.sample_codes`."""
    sample = sample_codes(codes, norms, bits, packing)
    return None if sample is None else outermost_of(sample, bits)


def lines(found: Iterable[tuple[str, Outermost]]) -> list[str]:
    """What to tell people of the layers, by name: one line where none has means, else the worst."""
    found = list(found)
    hurt = sorted(((name, seen) for name, seen in found if seen.notable), key=lambda item: -item[1].first)
    if not hurt:
        return [f"none hurt by block means (outermost codes at coordinate 0), of {len(found)} layers"] if found else []
    text = [
        f"{len(hurt)} of {len(found)} layers are hurt by block means: their outermost codes gather at coordinate 0, and their "
        "weights are less exact than the others'; encode them anew with searched norms, or with more bits"
    ]
    text += [f"  {seen.first:.3f} (elsewhere {seen.others:.4f})  {name}" for name, seen in hurt[:_SHOWN]]
    return text
