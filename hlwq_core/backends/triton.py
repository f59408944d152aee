"""The Triton backend: ROCm and Intel GPUs, and NVIDIA's where the CUDA backend cannot be used.

Torch brings Triton for these devices on Linux; it compiles the kernel at its first use. As in the CUDA backend, a variant
decodes a small random layer first and is compared with eager.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch

from ..format.codebook import BLOCK
from ..format.hadamard import hadamard
from ..format.packed import PackedLayer
from ..format.packing import PACKINGS, block_bytes
from . import eager, proof
from .contract import Backend, Constraints, Run

BLOCKS_A_PROGRAM = 32
CONSTRAINTS = Constraints(
    devices=("cuda", "xpu"),
    no_device="is no GPU that Triton compiles for",
    packages=("triton",),
    dtypes=(torch.float32, torch.float16, torch.bfloat16),
)

_log = logging.getLogger("hlwq")


@functools.lru_cache(maxsize=1)
def kernel() -> Any:
    """The kernel, compiled at its first launch for each variant."""
    import triton
    import triton.language as tl

    @triton.jit
    def hlwq_decode(  # type: ignore[no-untyped-def]
        codes,
        norms,
        table,
        matrix,
        out,
        total,
        num_blocks,
        in_features,
        BITS: tl.constexpr,
        PACKING: tl.constexpr,
        BYTES: tl.constexpr,
        ADD: tl.constexpr,
        COUNT: tl.constexpr,
    ):
        block = tl.program_id(0).to(tl.int64) * COUNT + tl.arange(0, COUNT)
        inside = block < total
        i = tl.arange(0, 128)
        start = codes + block[:, None] * BYTES
        wanted = inside[:, None] & (i[None, :] < 128)
        if PACKING == 3:
            code = tl.load(start + i[None, :], mask=wanted, other=0).to(tl.int32) & ((1 << BITS) - 1)
        elif PACKING == 2:
            pair = tl.load(start + (i % 64)[None, :], mask=wanted, other=0).to(tl.int32)
            code = (pair >> (4 * (i // 64))[None, :]) & 15
        else:
            first = i * BITS // 8
            offset = i * BITS % 8
            low = tl.load(start + first[None, :], mask=wanted, other=0).to(tl.int32)
            two = wanted & ((offset + BITS) > 8)[None, :]
            high = tl.load(start + first[None, :] + 1, mask=two, other=0).to(tl.int32)
            if PACKING == 0:
                code = (((low << 8) | high) >> (16 - offset - BITS)[None, :]) & ((1 << BITS) - 1)
            else:
                code = ((low | (high << 8)) >> offset[None, :]) & ((1 << BITS) - 1)
        level = tl.load(table + code)
        h = tl.load(matrix + i[:, None] * 128 + i[None, :])
        weight = tl.dot(level, h, input_precision="ieee")
        weight *= tl.load(norms + block, mask=inside, other=0).to(tl.float32)[:, None]
        row = block // num_blocks
        column = (block % num_blocks)[:, None] * 128 + i[None, :]
        target = out + row[:, None] * in_features + column
        kept = inside[:, None] & (column < in_features)
        if ADD:
            weight += tl.load(target, mask=kept, other=0).to(tl.float32)
        tl.store(target, weight.to(out.dtype.element_ty), mask=kept)

    return hlwq_decode


def launch(packed: PackedLayer, out: torch.Tensor, accumulate: bool) -> None:
    """Decode contiguous rows into a contiguous `out`, unproven."""
    codes, norms = packed.codes, packed.norms
    total = norms.numel()
    grid = (-(-total // BLOCKS_A_PROGRAM),)
    kernel()[grid](
        codes,
        norms,
        packed.table(codes.device),
        hadamard(str(codes.device)),
        out,
        total,
        norms.shape[1],
        packed.shape[1],
        BITS=packed.bits,
        PACKING=PACKINGS.index(packed.packing),
        BYTES=block_bytes(packed.bits, packed.packing),
        ADD=accumulate,
        COUNT=BLOCKS_A_PROGRAM,
    )


@functools.lru_cache(maxsize=128)
def _proven(device: torch.device, bits: int, packing: str, dtype: torch.dtype, accumulate: bool) -> bool:
    try:
        proof.prove(launch, device, bits, packing, dtype, accumulate)
    except Exception as error:  # a compiler's: any kind
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        _log.warning(
            "HLWQ: the Triton kernel (%d bits, %s) cannot be used, decoding with eager: %s", bits, packing, reason
        )
        return False
    return True


def prepare(packed: PackedLayer, dtype: torch.dtype) -> Run:
    """See `Backend.prepare`."""
    fallback = eager.prepare(packed, dtype)
    if not CONSTRAINTS.takes(packed, dtype):
        return fallback
    device, bits, packing = packed.codes.device, packed.bits, packed.packing
    whole = packed.contiguous()

    def run(out: torch.Tensor, accumulate: bool) -> object:
        if not out.is_contiguous() or not _proven(device, bits, packing, dtype, accumulate):
            return fallback(out, accumulate)
        launch(whole, out, accumulate)
        return None

    return run


BACKEND = Backend("triton", CONSTRAINTS, prepare)

assert BLOCK == 128, "the kernel is written for blocks of 128"
