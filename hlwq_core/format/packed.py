"""A quantized weight: what is known of it, and its parts as they lie in the files."""

from __future__ import annotations

from dataclasses import dataclass
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

    def table(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """The codebook / √128, float32 `[2**bits]`."""
        return scaled_table(self.codebook, self.bits, str(device))


def encoded_bytes(shape: tuple[int, ...], bits: int) -> tuple[int, int]:
    """Bytes of codes and of norms that a matrix `[out_features, in_features]` takes as this pack writes it."""
    blocks = -(-shape[1] // BLOCK)
    return shape[0] * row_bytes(blocks, bits, "msb"), shape[0] * blocks * 2
