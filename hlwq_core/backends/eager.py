"""The reference backend: plain torch, on any device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ..format.codebook import BLOCK
from ..format.hadamard import hadamard
from ..format.packing import unpack

NAME = "eager"
# Values decoded at a time: the temporaries of one pass stay within the CPU's caches and a small part of a layer.
CHUNK_VALUES = {"cpu": 1 << 18}
CHUNK_VALUES_ACCELERATOR = 1 << 24


def unavailable_reason(device: torch.device) -> str | None:
    """Why this backend cannot run on `device`; None, it always can."""
    return None


def decode(
    codes: torch.Tensor,
    norms: torch.Tensor,
    table: torch.Tensor,
    bits: int,
    packing: str,
    in_features: int,
    dtype: torch.dtype,
    out: torch.Tensor | None = None,
    accumulate: bool = False,
) -> torch.Tensor:
    """Decode rows of a packed weight: `w = (table[code] · H) · norm`, in float32, rounded to `dtype` at the end.

    Args:
        codes: uint8 `[rows, row_bytes]`.
        norms: float16 `[rows, num_blocks]`.
        table: float32 `[2**bits]`, the codebook / √128.
        bits, packing: how codes lie in their bytes (`packing.PACKINGS`).
        in_features: width of the weight; padding to a multiple of 128 is cut.
        dtype: of the result.
        out: `[rows, in_features]` of `dtype` to write into.
        accumulate: add to what `out` holds (a patch of the weight), before the one rounding.

    Returns:
        `[rows, in_features]` of `dtype`, on the device of `codes`.
    """
    rows, num_blocks = norms.shape
    device = codes.device
    if out is None:
        out = torch.empty((rows, in_features), dtype=dtype, device=device)
    h = hadamard(str(device))
    table = table.to(device)
    step = max(1, CHUNK_VALUES.get(device.type, CHUNK_VALUES_ACCELERATOR) // max(1, num_blocks * BLOCK))
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        values = _look_up(codes[start:stop], table, bits, packing).reshape(-1, BLOCK)
        weight = torch.mm(values, h)
        weight *= norms[start:stop].reshape(-1, 1).float()
        part = weight.reshape(stop - start, -1)[:, :in_features]
        out[start:stop] = part + out[start:stop] if accumulate else part
    return out


def prepare(*packed: Any) -> Callable[[torch.Tensor, bool], object]:
    """`decode` with all but `out` and `accumulate` laid down, for a weight that is decoded again and again."""
    return functools.partial(decode, *packed)


def _look_up(codes: torch.Tensor, table: torch.Tensor, bits: int, packing: str) -> torch.Tensor:
    unpacked = unpack(codes, bits, packing)
    if table.numel() < (1 << bits):
        raise ValueError(f"a table of {table.numel()} levels for {bits}-bit codes")
    if bits <= 6 and codes.device.type == "cpu":
        # Two codes a lookup: half the gathers, which dominate on a CPU.
        pairs = unpacked.contiguous().view(torch.int16)
        return torch.index_select(_pair_table(table, bits), 0, pairs.reshape(-1).int()).view(torch.float32)
    return torch.index_select(table, 0, unpacked.reshape(-1).int())


def _pair_table(table: torch.Tensor, bits: int) -> torch.Tensor:
    """Every pair of levels as one 8-byte value, indexed by two codes as they lie in an int16 (little endian)."""
    return _cached_pair_table(bits, tuple(table.tolist()))


@functools.lru_cache(maxsize=16)
def _cached_pair_table(bits: int, levels: tuple[float, ...]) -> torch.Tensor:
    table = torch.tensor(levels, dtype=torch.float32)
    size = 1 << bits
    pairs = torch.zeros((size, 256, 2), dtype=torch.float32)
    pairs[:, :size, 0] = table[:size]
    pairs[:, :size, 1] = table[:size, None]
    return pairs.reshape(-1).view(torch.int64)
