"""The Triton backend: ROCm and Intel GPUs, and NVIDIA's where the CUDA backend cannot be used.

Torch brings Triton for these devices on Linux; it compiles the kernel at its first use. As in the CUDA backend, a variant
decodes a small random layer first and is compared with eager.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable
from typing import Any

import torch

from ..format.codebook import BLOCK
from ..format.hadamard import hadamard
from ..format.packing import PACKINGS, block_bytes
from . import eager, proof
from .prepared import decode_with

NAME = "triton"
BLOCKS_A_PROGRAM = 32
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_log = logging.getLogger(__name__)


@functools.lru_cache(maxsize=16)
def unavailable_reason(device: torch.device) -> str | None:
    """Why this backend cannot run on `device`; None if it can."""
    if device.type not in ("cuda", "xpu"):
        return f"{device.type} is no GPU that Triton compiles for"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    return None


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


def launch(
    codes: torch.Tensor,
    norms: torch.Tensor,
    table: torch.Tensor,
    bits: int,
    packing: str,
    in_features: int,
    out: torch.Tensor,
    accumulate: bool,
) -> None:
    """Decode contiguous rows into a contiguous `out`, unproven."""
    total = norms.numel()
    grid = (-(-total // BLOCKS_A_PROGRAM),)
    kernel()[grid](
        codes,
        norms,
        table,
        hadamard(str(codes.device)),
        out,
        total,
        norms.shape[1],
        in_features,
        BITS=bits,
        PACKING=PACKINGS.index(packing),
        BYTES=block_bytes(bits, packing),
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


def prepare(
    codes: torch.Tensor,
    norms: torch.Tensor,
    table: torch.Tensor,
    bits: int,
    packing: str,
    in_features: int,
    dtype: torch.dtype,
) -> Callable[[torch.Tensor, bool], object]:
    """As `eager.prepare`."""
    fallback = eager.prepare(codes, norms, table, bits, packing, in_features, dtype)
    if dtype not in DTYPES:
        return fallback
    table = table.to(codes.device)
    codes, norms = codes.contiguous(), norms.contiguous()

    def run(out: torch.Tensor, accumulate: bool) -> object:
        if not out.is_contiguous() or not _proven(codes.device, bits, packing, dtype, accumulate):
            return fallback(out, accumulate)
        launch(codes, norms, table, bits, packing, in_features, out, accumulate)
        return None

    return run


decode = decode_with(prepare)


assert BLOCK == 128, "the kernel is written for blocks of 128"
