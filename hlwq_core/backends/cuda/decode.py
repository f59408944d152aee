"""Decoding by `hlwq_decode`, the kernel of decode.cu."""

from __future__ import annotations

import ctypes
import functools
import logging
import threading
from pathlib import Path

import torch

from ...format.packed import PackedLayer
from ...format.packing import PACKINGS
from .. import eager, proof
from ..contract import Constraints, Run
from .nvrtc import Kernel, Launch, pointer

SOURCE = Path(__file__).with_name("decode.cu")
FUNCTION = "hlwq_decode"
THREADS = 256
OUTPUTS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_BLOCKS_A_GRID_BLOCK = THREADS // 8

_log = logging.getLogger("hlwq")
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
    def launch(packed: PackedLayer, out: torch.Tensor, accumulate: bool) -> None:
        _launch(kernel, packed, packed.table(out.device), out)()

    proof.prove(launch, torch.device("cuda", kernel.device_index), bits, packing, dtype, accumulate)


def _launch(kernel: Kernel, packed: PackedLayer, table: torch.Tensor, out: torch.Tensor | None) -> Launch:
    """A launch of `hlwq_decode`; its argument 3 is the address to write to."""
    total, num_blocks = packed.norms.numel(), packed.norms.shape[1]
    grid = (total + _BLOCKS_A_GRID_BLOCK - 1) // _BLOCKS_A_GRID_BLOCK
    target = ctypes.c_uint64(0) if out is None else pointer(out)
    numbers = map(ctypes.c_uint32, (total, num_blocks, packed.shape[1]))
    return Launch(kernel, grid, THREADS, pointer(packed.codes), pointer(packed.norms), pointer(table), target, *numbers)


def prepare(packed: PackedLayer, dtype: torch.dtype, constraints: Constraints) -> Run:
    """See `Backend.prepare`: `run(out, accumulate)` then costs the host one call into the driver."""
    fallback = eager.prepare(packed, dtype)
    if not constraints.takes(packed, dtype):
        return fallback
    device = packed.codes.device
    device_index = device.index or 0
    bits, packing = packed.bits, packed.packing
    table = packed.table(device)
    whole = packed.contiguous()
    launches: list[Launch | None] = [None, None]  # plain and accumulating, built at their first use

    def run(out: torch.Tensor, accumulate: bool) -> object:
        launch = launches[accumulate]
        if launch is None:
            kernel = _kernel(device_index, bits, packing, dtype, accumulate)
            if kernel is None:
                return fallback(out, accumulate)
            launch = launches[accumulate] = _launch(kernel, whole, table, None)
        address = out.data_ptr()
        if address % 16 or not out.is_contiguous():
            aligned = out.clone(memory_format=torch.contiguous_format)
            run(aligned, accumulate)
            return out.copy_(aligned)
        launch.arguments[3].value = address
        launch()
        return None

    return run
