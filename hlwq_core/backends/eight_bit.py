"""Fast mode, defined: the activations are rotated instead of the weights un-rotated, and both are multiplied in 8 bits.

`W = R · H` with the packed weight's levels and norms in R and the Walsh-Hadamard matrix H, so `x · Wᵀ = (x · H) · Rᵀ`. R goes
to 8 bits by look-up and one scale a row; x is transformed once for all the projections that read it, with one scale a row;
the vendor's matrix product does the rest. FP8 (e4m3) on Ada and later, INT8 on Turing and Ampere.

All of it is plain torch here, on any device: what backends' kernels are compared with before they are used.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..format.codebook import BLOCK
from ..format.hadamard import hadamard
from ..format.packed import PackedLayer
from ..format.packing import unpack

# In order of preference.
KINDS = ("fp8", "int8")
INPUTS = (torch.bfloat16, torch.float16, torch.float32)
DTYPES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
LIMITS = {"fp8": 448.0, "int8": 127.0}


class EightBit(NamedTuple):
    """A matrix in 8 bits, rotated block by block.

    Attributes:
        values: float8 or int8 `[rows, padded]`, padded to whole blocks.
        scales: float32 `[rows, 1]`: the matrix is `values · scales`.
    """

    values: torch.Tensor
    scales: torch.Tensor

    def dense(self) -> torch.Tensor:
        """The matrix, float32 `[rows, padded]`."""
        return self.values.float() * self.scales


def empty(rows: int, padded: int, kind: str, device: torch.device | str) -> EightBit:
    """Memory for a matrix."""
    values = torch.empty((rows, padded), dtype=DTYPES[kind], device=device)
    return EightBit(values, torch.empty((rows, 1), dtype=torch.float32, device=device))


def round_rows(x: torch.Tensor, kind: str) -> EightBit:
    """float32 `[rows, padded]` to 8 bits with one scale a row."""
    scales = x.abs().amax(dim=1, keepdim=True) / LIMITS[kind]
    return EightBit(_rounded(x * _inverse(scales), kind), scales)


def _inverse(scales: torch.Tensor) -> torch.Tensor:
    """0 where a row is zero."""
    return torch.where(scales > 0, 1 / scales, 0)


def _rounded(scaled: torch.Tensor, kind: str) -> torch.Tensor:
    return scaled.to(DTYPES[kind]) if kind == "fp8" else scaled.round().to(torch.int8)


def rotate(x: torch.Tensor, kind: str) -> EightBit:
    """Rotate activations `[rows, columns]` of one of `INPUTS` and round them to 8 bits."""
    rows, columns = x.shape
    padded = torch.nn.functional.pad(x.float(), (0, -columns % BLOCK))
    return round_rows((padded.reshape(-1, BLOCK) @ hadamard(str(x.device))).reshape(rows, -1), kind)


def weight(packed: PackedLayer, kind: str) -> EightBit:
    """A packed weight in 8 bits, `[out_features, padded]`. The scale is that of the row's largest norm and level."""
    rows, num_blocks = packed.norms.shape
    table = packed.table(packed.codes.device)
    levels = table[unpack(packed.codes, packed.bits, packed.packing).int()].reshape(rows, num_blocks, BLOCK)
    scales = packed.norms.float().amax(dim=1, keepdim=True) * table.abs().max() / LIMITS[kind]
    factors = packed.norms.float() * _inverse(scales)
    return EightBit(_rounded((levels * factors[:, :, None]).reshape(rows, -1), kind), scales)


def multiply(x: EightBit, w: EightBit, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """`x · wᵀ + bias`.

    Args:
        x: `[rows, padded]`.
        w: `[out_features, padded]`.
        bias: `[out_features]`.
        dtype: of the result, one of `INPUTS`.

    Returns:
        `[rows, out_features]` of `dtype`.
    """
    product = (x.values.float() @ w.values.float().t()) * x.scales * w.scales.t()
    return (product if bias is None else product + bias.float()).to(dtype)
