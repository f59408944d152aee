"""The methods that `quality.py` compares: each makes of a layer's weight what a decoder gets back, and says how many bits that took.

HLWQ's go through `encode_layer`, as `quantize` does. GGML's types are encoded by GGML itself (libggml-base of the wheel of
pywhispercpp 1.5.1) and decoded by the package gguf 0.19.0, both fetched from the package index; rows that are not a multiple of
256 wide, Whisper's, are encoded as one long row, which GGML's own programs do not do (they fall back to other types).
"""

from __future__ import annotations

import ctypes
import functools
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hlwq_core import backends
from hlwq_core.codec.calibration import LayerInputs
from hlwq_core.codec.layers import encode_layer
from hlwq_core.format.codebook import BLOCK
from hlwq_core.format.hadamard import hadamard
from hlwq_core.format.packed import PackedLayer, encoded_bytes

GGML, GGUF = "pywhispercpp==1.5.1", "gguf==0.19.0"
# Name → number of the type and bits a weight.
GGML_TYPES = {"q4_k": 12, "q5_k": 13, "q6_k": 14, "q8_0": 8}


@dataclass
class Made:
    """What a method makes of a layer: `weight` decoded, `bits` of storage in all, what is added to the bias, and its codes."""

    weight: torch.Tensor
    bits: int
    bias: torch.Tensor | None = None
    packed: PackedLayer | None = None
    way: str = ""


Method = Callable[[str, torch.Tensor, bool], Made]


def hlwq(
    bits: Mapping[str, int] | int, norms: str = "search", inputs: Callable[[str], LayerInputs | None] = lambda n: None
) -> Method:
    """Of so many bits, by layer or for all; with what is known of the inputs, if anything is."""

    def encode(name: str, weight: torch.Tensor, has_bias: bool) -> Made:
        width = bits if isinstance(bits, int) else bits[name]
        made = encode_layer(
            weight, width, norms, "infinite", torch.device("cpu"), name=name, inputs=inputs(name), has_bias=has_bias
        )
        rows, columns = weight.shape
        packed = PackedLayer(made.codes, made.norms, width, "msb", "infinite", (rows, columns))
        size = 8 * sum(encoded_bytes((rows, columns), width))
        return Made(backends.decode(packed, torch.float32), size, made.bias, packed, made.way)

    return encode


def fp8(name: str, weight: torch.Tensor, has_bias: bool) -> Made:
    """e4m3 with one scale a tensor, as ComfyUI's scaled fp8."""
    scale = weight.abs().max() / 448
    return Made((weight / scale).to(torch.float8_e4m3fn).float() * scale, 8 * weight.numel() + 32)


def int8_rows(name: str, weight: torch.Tensor, has_bias: bool) -> Made:
    """One scale a row."""
    scales = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
    return Made((weight / scales).round() * scales, 8 * weight.numel() + 16 * weight.shape[0])


def int8_rotated(name: str, weight: torch.Tensor, has_bias: bool) -> Made:
    """The same after the rotation of blocks of 128."""
    rows, columns = weight.shape
    h = hadamard("cpu")
    turned = (torch.nn.functional.pad(weight, (0, -columns % BLOCK)).reshape(rows, -1, BLOCK) @ h).reshape(rows, -1)
    made = int8_rows(name, turned, has_bias)
    back = (made.weight.reshape(rows, -1, BLOCK) @ h).reshape(rows, -1)[:, :columns]
    return Made(back.contiguous(), made.bits)


def ggml(kind: str, cache: Path) -> Method:
    """One of GGML's types."""
    library, quants = _libraries(cache)
    number = GGML_TYPES[kind]

    def encode(name: str, weight: torch.Tensor, has_bias: bool) -> Made:
        columns = weight.shape[1] if weight.shape[1] % 256 == 0 else weight.numel()
        rows = weight.contiguous().reshape(-1, columns)
        size = library.ggml_row_size(number, columns) * rows.shape[0]
        data = torch.empty(size, dtype=torch.uint8)
        written = library.ggml_quantize_chunk(number, rows.data_ptr(), data.data_ptr(), 0, rows.shape[0], columns, None)
        assert written == size, (written, size)
        decoded = quants.dequantize(data.numpy().reshape(rows.shape[0], -1), quants.GGMLQuantizationType(number))
        return Made(torch.from_numpy(decoded.copy()).reshape(weight.shape).float(), 8 * size)

    return encode


@functools.cache  # a library that is in use must not be unpacked over
def _libraries(cache: Path) -> tuple[Any, Any]:
    wheels = cache / "wheels"
    for package in (GGML, GGUF):
        if not list(wheels.glob(package.replace("==", "-") + "-*.whl")):
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels), package]
            subprocess.run(command, check=True)
    folder = cache / "ggml"
    with zipfile.ZipFile(next(wheels.glob("pywhispercpp-1.5.1-*.whl"))) as wheel:
        wheel.extractall(
            folder, [n for n in wheel.namelist() if n == "libggml-base.so" or n.startswith("pywhispercpp.libs/")]
        )
    library = ctypes.CDLL(str(folder / "libggml-base.so"))
    library.ggml_row_size.restype = library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    pointer = ctypes.c_void_p
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, *[ctypes.c_int64] * 3, pointer]
    sys.path.insert(0, str(next(wheels.glob("gguf-0.19.0-*.whl"))))
    from gguf import quants  # of the wheel, which Python reads as it is

    return library, quants
