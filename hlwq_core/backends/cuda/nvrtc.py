"""Kernels built on the user's machine by NVRTC, which torch brings along, and launches that cost the host little.

No toolchain is needed, on Linux or Windows. A launch keeps its arguments in place: the next one changes what has changed
and makes a single call into the driver (torch's own launcher for such kernels takes 55 µs a call, this one about 3).
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

HEADERS = tuple(Path(__file__).with_name(name) for name in ("packed.cuh", "eight_bit.cuh", "columns.cuh"))


def compile_cubin(source: Path, definitions: Sequence[str], arch: str) -> bytes:
    """Compile a kernel for an architecture such as `sm_90`. Needs no GPU.

    Raises:
        RuntimeError: NVRTC's log.
    """
    from cuda.bindings import nvrtc

    def check(result: tuple[Any, ...]) -> Any:
        if result[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise RuntimeError(f"NVRTC: {nvrtc.nvrtcGetErrorString(result[0])[1].decode()}")
        return result[1] if len(result) > 1 else None

    headers = [header.read_bytes() for header in HEADERS], [header.name.encode() for header in HEADERS]
    program = check(nvrtc.nvrtcCreateProgram(source.read_bytes(), source.name.encode(), len(HEADERS), *headers))
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


class Kernel:
    """A kernel on one device.

    Args:
        device_index: the CUDA device; made current by the caller.
        source: its `.cu` file.
        name: of the function in it.
        definitions: compiler options.

    Raises:
        RuntimeError: it cannot be compiled or loaded.
    """

    def __init__(self, device_index: int, source: Path, name: str, definitions: Sequence[str]):
        from cuda.bindings import driver

        def check(result: tuple[Any, ...]) -> Any:
            if result[0] != driver.CUresult.CUDA_SUCCESS:
                raise RuntimeError(f"CUDA driver: {result[0].name}")
            return result[1]

        major, minor = torch.cuda.get_device_capability(device_index)
        torch.cuda.synchronize(device_index)  # makes the device's context current in this thread
        self.device_index = device_index
        self._module = check(driver.cuModuleLoadData(compile_cubin(source, definitions, f"sm_{major}{minor}")))
        self.function = int(check(driver.cuModuleGetFunction(self._module, name.encode())))


@functools.lru_cache(maxsize=1)
def _driver_launch() -> Any:
    """`cuLaunchKernel` of the driver, called through ctypes: 2 µs, a quarter of what the bindings take."""
    library = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    launch = library.cuLaunchKernel
    launch.argtypes = [ctypes.c_void_p, *[ctypes.c_uint] * 7, *[ctypes.c_void_p] * 3]
    launch.restype = ctypes.c_int
    return launch


class Launch:
    """A launch with its arguments in place.

    Args:
        kernel: what to launch.
        blocks, threads: grid and block, both of one dimension.
        arguments: the kernel's arguments: `ctypes` numbers, pointers as `c_uint64`. Change their `.value` at will.

    Attributes:
        arguments: as given.
        blocks: of the next launch.
    """

    __slots__ = ("_addresses", "_call", "_device", "_function", "_rest", "arguments", "blocks")

    def __init__(self, kernel: Kernel, blocks: int, threads: int, *arguments: Any):
        self.arguments = arguments
        self.blocks = blocks
        self._addresses = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        self._function = kernel.function
        self._rest = (1, 1, threads, 1, 1, 0)
        self._device = kernel.device_index
        self._call = _driver_launch()

    def __call__(self) -> None:
        """Enqueue it on the device's current stream.

        Raises:
            RuntimeError: the driver refused; with its error number.
        """
        if torch._C._cuda_getDevice() != self._device:
            with torch.cuda.device(self._device):
                self()
            return
        stream = torch._C._cuda_getCurrentRawStream(self._device)
        error = self._call(self._function, self.blocks, *self._rest, stream, self._addresses, None)
        if error:
            raise RuntimeError(f"the CUDA driver did not launch an HLWQ kernel: error {error}")


def pointer(tensor: torch.Tensor) -> ctypes.c_uint64:
    """A tensor's address as a kernel argument."""
    return ctypes.c_uint64(tensor.data_ptr())
