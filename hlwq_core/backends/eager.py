"""The definition of decoding: plain torch, on any device."""

from __future__ import annotations

import functools

import torch

from ..format.codebook import BLOCK
from ..format.hadamard import hadamard
from ..format.packed import PackedLayer
from ..format.packing import unpack
from . import activations, eight_bit
from .activations import Steps
from .contract import Backend, Constraints, EightBitRun, Fast, Run
from .eight_bit import EightBit

# Values decoded at a time: the temporaries of one pass stay within the CPU's caches and a small part of a layer.
CHUNK_VALUES = {"cpu": 1 << 18}
CHUNK_VALUES_ACCELERATOR = 1 << 24


def decode_into(packed: PackedLayer, out: torch.Tensor, accumulate: bool) -> None:
    """Decode a weight: `w = (table[code] · H) · norm`, in float32, rounded at the end. Padding of rows is cut.

    Args:
        packed: the weight.
        out: `[out_features, in_features]` of any floating dtype, on its device.
        accumulate: add to what `out` holds, before the one rounding.
    """
    rows, num_blocks = packed.norms.shape
    device = packed.codes.device
    in_features = packed.shape[1]
    h = hadamard(str(device))
    table = packed.table(device)
    step = max(1, CHUNK_VALUES.get(device.type, CHUNK_VALUES_ACCELERATOR) // max(1, num_blocks * BLOCK))
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        values = _look_up(packed.codes[start:stop], table, packed.bits, packed.packing).reshape(-1, BLOCK)
        weight = torch.mm(values, h)
        weight *= packed.norms[start:stop].reshape(-1, 1).float()
        part = weight.reshape(stop - start, -1)[:, :in_features]
        out[start:stop] = part + out[start:stop] if accumulate else part


def prepare(packed: PackedLayer, dtype: torch.dtype) -> Run:
    """See `Backend.prepare`."""
    return functools.partial(decode_into, packed)


def decode(
    packed: PackedLayer, dtype: torch.dtype, out: torch.Tensor | None = None, accumulate: bool = False
) -> torch.Tensor:
    """See `Backend.decode`."""
    return BACKEND.decode(packed, dtype, out, accumulate)


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


def prepare_eight_bit(packed: PackedLayer, kind: str) -> EightBitRun:
    """See `Fast.prepare`."""

    def run(out: EightBit) -> None:
        made = eight_bit.weight(packed, kind)
        out.values.copy_(made.values)
        out.scales.copy_(made.scales)

    return run


def _rotate_after(x: torch.Tensor, steps: Steps, dense: bool, kind: str) -> tuple[EightBit, torch.Tensor | None]:
    whole = activations.apply(x, steps)
    return eight_bit.rotate(whole, kind), whole.to(x.dtype) if dense else None


def _fast(kind: str) -> Fast:
    return Fast(
        kind,
        Constraints(),
        prove=lambda device: None,
        rotate=lambda x: eight_bit.rotate(x, kind),
        prepare=lambda packed: prepare_eight_bit(packed, kind),
        multiply=lambda x, w, bias, dtype: eight_bit.multiply(x, w, bias, dtype),
        rotate_after=functools.partial(_rotate_after, kind=kind),
        add_product=activations.add_product,
        norm_rope=activations.norm_rope,
    )


BACKEND = Backend("eager", Constraints(), prepare, {kind: _fast(kind) for kind in eight_bit.KINDS})
