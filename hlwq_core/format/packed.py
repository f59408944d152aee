"""A quantized weight: what is known of it, and its parts as they lie in the files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .codebook import BLOCK, scaled_table
from .packing import row_bytes


@dataclass(frozen=True)
class LayerInfo:
    """What is known of a quantized tensor without decoding it.

    Attributes:
        name: the model's name.
        shape: `(out_features, in_features)`.
        bits: bits a code.
        variant: `V1` to `V4`.
        packing: `msb`, `lsb`, `nibble` or `byte`.
        codebook: `infinite`, `finite`, or `stored-…` for one that the file carries.
        num_blocks: blocks a row.
        nbytes: bytes of codes and norms.
        files: where they lie.
    """

    name: str
    shape: tuple[int, int]
    bits: int
    variant: str
    packing: str
    codebook: str
    num_blocks: int
    nbytes: int
    files: tuple[Path, ...]


@dataclass(frozen=True)
class PackedLayer:
    """A quantized weight as it lies in the files: views of the mapped bytes.

    Attributes:
        codes: uint8 `[out_features, row_bytes]`.
        norms: float16 `[out_features, num_blocks]`.
        bits, packing, codebook: as in `LayerInfo`.
        shape: `(out_features, in_features)`.
    """

    codes: torch.Tensor
    norms: torch.Tensor
    bits: int
    packing: str
    codebook: str
    shape: tuple[int, int]

    @property
    def padded(self) -> int:
        """Width of a row in whole blocks."""
        return self.norms.shape[1] * BLOCK

    def table(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """The codebook / √128, float32 `[2**bits]`."""
        return scaled_table(self.codebook, self.bits, str(device))

    def to(self, device: torch.device | str) -> PackedLayer:
        """The same weight on a device."""
        return replace(self, codes=self.codes.to(device), norms=self.norms.to(device))

    def rows(self, rows: slice) -> PackedLayer:
        """A range of its rows, as views."""
        norms = self.norms[rows]
        return replace(self, codes=self.codes[rows], norms=norms, shape=(norms.shape[0], self.shape[1]))

    def contiguous(self) -> PackedLayer:
        """The same weight as a kernel reads it: without gaps, the codes at an even address."""
        even = self.codes.data_ptr() % 2 == 0
        if even and self.codes.is_contiguous() and self.norms.is_contiguous():
            return self
        codes = self.codes.contiguous() if even else self.codes.clone(memory_format=torch.contiguous_format)
        return replace(self, codes=codes, norms=self.norms.contiguous())


def encoded_bytes(shape: tuple[int, ...], bits: int) -> tuple[int, int]:
    """Bytes of codes and of norms that a matrix `[out_features, in_features]` takes as this pack writes it."""
    blocks = -(-shape[1] // BLOCK)
    return shape[0] * row_bytes(blocks, bits, "msb"), shape[0] * blocks * 2
