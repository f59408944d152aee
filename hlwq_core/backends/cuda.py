"""The CUDA backend: one kernel, built on the user's machine by NVRTC, which torch brings along. No toolchain is needed.

Before a variant of the kernel is used, it decodes a small random layer and is compared with the eager backend: a driver
or a card that would give wrong weights gives a warning and eager decoding instead.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import threading
from pathlib import Path
from typing import Any

import torch

from ..codebook import BLOCK
from ..packing import PACKINGS, row_bytes
from . import eager

NAME = "cuda"
SOURCE = Path(__file__).with_name("decode.cu")
THREADS = 256
_OUTPUTS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_BLOCKS_A_GRID_BLOCK = THREADS // 8

_log = logging.getLogger(__name__)
_build_lock = threading.Lock()


@functools.lru_cache(maxsize=16)
def unavailable_reason(device: torch.device) -> str | None:
    """Why this backend cannot run on `device`; None if it can."""
    if device.type != "cuda":
        return f"{device.type} is no CUDA device"
    if torch.version.cuda is None:
        return "this torch is built for ROCm, not for CUDA"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    if torch.cuda.get_device_capability(device) < (7, 0):
        return "the card is older than Volta (compute capability 7.0)"
    try:
        from cuda.bindings import driver, nvrtc  # noqa: F401
    except ImportError as error:
        return f"the package cuda-bindings, which torch brings, cannot be imported: {error}"
    return None


def options(bits: int, packing: str, dtype: torch.dtype) -> list[str]:
    """The kernel's definitions for one variant, as compiler options."""
    return [f"-DBITS={bits}", f"-DPACKING={PACKINGS.index(packing)}", f"-DOUTPUT={_OUTPUTS[dtype]}"]


def compile_cubin(definitions: list[str], arch: str) -> bytes:
    """Compile the kernel for an architecture such as `sm_90`. Needs no GPU.

    Raises:
        RuntimeError: NVRTC's log.
    """
    from cuda.bindings import nvrtc

    def check(result: tuple[Any, ...]) -> Any:
        if result[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise RuntimeError(f"NVRTC: {nvrtc.nvrtcGetErrorString(result[0])[1].decode()}")
        return result[1] if len(result) > 1 else None

    program = check(nvrtc.nvrtcCreateProgram(SOURCE.read_bytes(), b"decode.cu", 0, [], []))
    try:
        arguments = [option.encode() for option in (*definitions, f"--gpu-architecture={arch}", "--std=c++17")]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(arguments), arguments)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = b" " * check(nvrtc.nvrtcGetProgramLogSize(program))
            nvrtc.nvrtcGetProgramLog(program, log)
            raise RuntimeError(log.decode(errors="replace").strip("\0 \n"))
        cubin = b" " * check(nvrtc.nvrtcGetCUBINSize(program))
        check(nvrtc.nvrtcGetCUBIN(program, cubin))
        return cubin
    finally:
        nvrtc.nvrtcDestroyProgram(program)


class _Kernel:
    """A built kernel with its argument buffer: a launch writes seven numbers and makes one call."""

    def __init__(self, device_index: int, bits: int, packing: str, dtype: torch.dtype):
        from cuda.bindings import driver

        major, minor = torch.cuda.get_device_capability(device_index)
        cubin = compile_cubin(options(bits, packing, dtype), f"sm_{major}{minor}")
        self._driver = driver
        self._module = self._check(driver.cuModuleLoadData(cubin))
        self._function = self._check(driver.cuModuleGetFunction(self._module, b"hlwq_decode"))
        self._local = threading.local()

    def _check(self, result: tuple[Any, ...]) -> Any:
        if result[0] != self._driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"CUDA driver: {result[0].name}")
        return result[1] if len(result) > 1 else None

    def _buffer(self) -> tuple[ctypes.Array, ctypes.Array, int]:
        try:
            return self._local.buffer
        except AttributeError:
            pointers = (ctypes.c_uint64 * 4)()
            numbers = (ctypes.c_uint32 * 3)()
            addresses = (ctypes.c_void_p * 7)(
                *(ctypes.addressof(pointers) + 8 * i for i in range(4)),
                *(ctypes.addressof(numbers) + 4 * i for i in range(3)),
            )
            self._local.addresses = addresses
            self._local.buffer = (pointers, numbers, ctypes.addressof(addresses))
            return self._local.buffer

    def launch(
        self,
        codes: torch.Tensor,
        norms: torch.Tensor,
        table: torch.Tensor,
        out: torch.Tensor,
        in_features: int,
        stream: int,
    ) -> None:
        pointers, numbers, addresses = self._buffer()
        num_blocks = norms.shape[1]
        total = norms.shape[0] * num_blocks
        pointers[0], pointers[1] = codes.data_ptr(), norms.data_ptr()
        pointers[2], pointers[3] = table.data_ptr(), out.data_ptr()
        numbers[0], numbers[1], numbers[2] = total, num_blocks, in_features
        grid = (total + _BLOCKS_A_GRID_BLOCK - 1) // _BLOCKS_A_GRID_BLOCK
        self._check(self._driver.cuLaunchKernel(self._function, grid, 1, 1, THREADS, 1, 1, 0, stream, addresses, 0))


@functools.lru_cache(maxsize=64)
def _kernel(device_index: int, bits: int, packing: str, dtype: torch.dtype) -> _Kernel | None:
    """A built and proven kernel; None, with a warning, if it cannot be had."""
    with _build_lock, torch.cuda.device(device_index):
        try:
            kernel = _Kernel(device_index, bits, packing, dtype)
            _prove(kernel, device_index, bits, packing, dtype)
        except RuntimeError as error:
            _log.warning(
                "HLWQ: the CUDA kernel (%d bits, %s) cannot be used, decoding with eager: %s", bits, packing, error
            )
            return None
    return kernel


def _prove(kernel: _Kernel, device_index: int, bits: int, packing: str, dtype: torch.dtype) -> None:
    device = torch.device("cuda", device_index)
    generator = torch.Generator().manual_seed(0)
    rows, num_blocks, in_features = 33, 3, 2 * BLOCK + 72
    codes = torch.randint(0, 256, (rows, row_bytes(num_blocks, bits, packing)), generator=generator, dtype=torch.uint8)
    if packing == "byte":
        codes &= (1 << bits) - 1
    norms = (torch.rand(rows, num_blocks, generator=generator) + 0.5).half()
    table = torch.randn(1 << bits, generator=generator)
    expected = eager.decode(codes, norms, table, bits, packing, in_features, torch.float32)
    found = torch.empty((rows, in_features), dtype=dtype, device=device)
    on_device = (codes.to(device), norms.to(device), table.to(device))
    kernel.launch(*on_device, found, in_features, torch.cuda.current_stream(device).cuda_stream)
    scale = float(expected.abs().max()) * {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    difference = float((found.float().cpu() - expected).abs().max())
    if not difference <= scale:
        raise RuntimeError(f"its result differs from eager's by {difference:.3g}, {scale:.3g} are allowed")


def decode(
    codes: torch.Tensor,
    norms: torch.Tensor,
    table: torch.Tensor,
    bits: int,
    packing: str,
    in_features: int,
    dtype: torch.dtype,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Decode rows of a packed weight on a CUDA device; arguments and result as `eager.decode`."""
    device = codes.device
    kernel = _kernel(device.index or 0, bits, packing, dtype) if dtype in _OUTPUTS else None
    if kernel is None or norms.numel() >= 1 << 31:
        return eager.decode(codes, norms, table, bits, packing, in_features, dtype, out)
    if out is None:
        out = torch.empty((codes.shape[0], in_features), dtype=dtype, device=device)
    target = out if out.is_contiguous() and out.data_ptr() % 16 == 0 else torch.empty_like(out).contiguous()
    codes, norms = codes.contiguous(), norms.contiguous()
    if codes.data_ptr() % 2:
        codes = codes.clone()
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream(device).cuda_stream
        kernel.launch(codes, norms, table.to(device), target, in_features, stream)
    if target is not out:
        out.copy_(target)
    return out
