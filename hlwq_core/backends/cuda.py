"""The CUDA backend: kernels built at run time (see nvrtc.py), for every way of packing and three output types.

Before a variant of a kernel is used, it decodes a small random layer and is compared with the eager backend: a driver or a
card that would give wrong weights gives a warning and eager decoding instead.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from ..format.packing import PACKINGS
from . import eager, proof
from .nvrtc import Kernel, Launch, pointer, unavailable_reason
from .prepared import decode_with

__all__ = ["NAME", "decode", "prepare", "unavailable_reason"]

NAME = "cuda"
SOURCE = Path(__file__).with_name("decode.cu")
FUNCTION = "hlwq_decode"
THREADS = 256
OUTPUTS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_BLOCKS_A_GRID_BLOCK = THREADS // 8

_log = logging.getLogger(__name__)
_build_lock = threading.Lock()


def options(bits: int, packing: str, dtype: torch.dtype, accumulate: bool = False) -> list[str]:
    """The kernel's definitions for one variant, as compiler options."""
    numbers = {"BITS": bits, "PACKING": PACKINGS.index(packing), "OUTPUT": OUTPUTS[dtype], "ADD": int(accumulate)}
    return [f"-D{name}={number}" for name, number in numbers.items()]


@functools.lru_cache(maxsize=128)
def _kernel(device_index: int, bits: int, packing: str, dtype: torch.dtype, accumulate: bool = False) -> Kernel | None:
    """A built and proven kernel; None, with a warning, if it cannot be had."""
    with _build_lock, torch.cuda.device(device_index):
        try:
            kernel = Kernel(device_index, SOURCE, FUNCTION, options(bits, packing, dtype, accumulate))
            _prove(kernel, bits, packing, dtype, accumulate)
        except (OSError, RuntimeError) as error:
            _log.warning(
                "HLWQ: the CUDA kernel (%d bits, %s) cannot be used, decoding with eager: %s", bits, packing, error
            )
            return None
    return kernel


def _prove(kernel: Kernel, bits: int, packing: str, dtype: torch.dtype, accumulate: bool) -> None:
    def launch(codes, norms, table, bits, packing, in_features, out, accumulate):  # type: ignore[no-untyped-def]
        _launch(kernel, codes, norms, table, out, in_features)()

    proof.prove(launch, torch.device("cuda", kernel.device_index), bits, packing, dtype, accumulate)


def _launch(
    kernel: Kernel,
    codes: torch.Tensor,
    norms: torch.Tensor,
    table: torch.Tensor,
    out: torch.Tensor | None,
    in_features: int,
) -> Launch:
    """A launch of `hlwq_decode`; its argument 3 is the address to write to."""
    total = norms.numel()
    grid = (total + _BLOCKS_A_GRID_BLOCK - 1) // _BLOCKS_A_GRID_BLOCK
    target = ctypes.c_uint64(0) if out is None else pointer(out)
    numbers = map(ctypes.c_uint32, (total, norms.shape[1], in_features))
    return Launch(kernel, grid, THREADS, pointer(codes), pointer(norms), pointer(table), target, *numbers)


def prepare(
    codes: torch.Tensor,
    norms: torch.Tensor,
    table: torch.Tensor,
    bits: int,
    packing: str,
    in_features: int,
    dtype: torch.dtype,
) -> Callable[[torch.Tensor, bool], object]:
    """As `eager.prepare`: `run(out, accumulate)` then costs the host one call into the driver."""
    fallback = eager.prepare(codes, norms, table, bits, packing, in_features, dtype)
    if dtype not in OUTPUTS or norms.numel() >= 1 << 31:
        return fallback
    device_index = codes.device.index or 0
    table = table.to(codes.device)
    codes, norms = codes.contiguous(), norms.contiguous()
    if codes.data_ptr() % 2:
        codes = codes.clone()
    launches: list[Launch | None] = [None, None]  # plain and accumulating, built at their first use

    def run(out: torch.Tensor, accumulate: bool) -> object:
        launch = launches[accumulate]
        if launch is None:
            kernel = _kernel(device_index, bits, packing, dtype, accumulate)
            if kernel is None:
                return fallback(out, accumulate)
            launch = launches[accumulate] = _launch(kernel, codes, norms, table, None, in_features)
        address = out.data_ptr()
        if address % 16 or not out.is_contiguous():
            aligned = out.clone(memory_format=torch.contiguous_format)
            run(aligned, accumulate)
            return out.copy_(aligned)
        launch.arguments[3].value = address
        launch()
        return None

    return run


decode = decode_with(prepare)
