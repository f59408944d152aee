"""Fast mode on CUDA: kernels that rotate activations, bring weights to 8 bits and scale INT8 sums; the vendor's products."""

from __future__ import annotations

import ctypes
import functools
import logging
from pathlib import Path

import torch

from ...errors import is_refusal
from ...format.codebook import BLOCK
from ...format.packed import PackedLayer
from .. import eager, eight_bit, proof
from ..contract import EightBitRun
from ..eight_bit import DTYPES, KINDS, EightBit
from . import decode
from .nvrtc import Kernel, Launch

_log = logging.getLogger("hlwq")

_FOLDER = Path(__file__).parent
ROTATE, WEIGHT, SCALE = _FOLDER / "rotate.cu", _FOLDER / "eight_bit.cu", _FOLDER / "scale.cu"
THREADS = 256
MAX_COLUMNS = 16 * 1024  # 1,024 threads of 16 columns
# INT8 sums are 4 bytes: this many rows' sums are held at a time.
SUMS = 1 << 24
# The vendor's INT8 product takes no fewer than 17 rows.
MIN_INT8_ROWS = 32


def rotate_options(dtype: torch.dtype, kind: str, step: int = 0, dense: bool = False) -> list[str]:
    """Definitions of the kernel that rotates activations, `step` done before (activations.py)."""
    eight = [f"-DOUTPUT={decode.OUTPUTS[dtype]}", f"-DEIGHT={KINDS.index(kind)}"]
    return [*eight, f"-DSTEP={step}", f"-DDENSE={int(dense)}"]


def weight_options(bits: int, packing: str, kind: str) -> list[str]:
    """Definitions of the kernel that makes 8-bit weights."""
    return [*decode.options(bits, packing, torch.float32), f"-DEIGHT={KINDS.index(kind)}"]


def scale_options(dtype: torch.dtype, bias: bool) -> list[str]:
    """Definitions of the kernel that scales INT8 sums."""
    return [f"-DOUTPUT={decode.OUTPUTS[dtype]}", f"-DBIAS={int(bias)}"]


@functools.lru_cache(maxsize=128)
def kernel(device_index: int, source: Path, name: str, definitions: tuple[str, ...]) -> Kernel:
    """A kernel of fast mode on a device, built once."""
    with torch.cuda.device(device_index):
        return Kernel(device_index, source, name, definitions)


@functools.lru_cache(maxsize=256)
def _rotate_launch(device_index: int, columns: int, dtype: torch.dtype, kind: str) -> Launch:
    padded = -(-columns // BLOCK) * BLOCK
    threads = -(-padded // (16 * 32)) * 32
    built = kernel(device_index, ROTATE, "hlwq_rotate", tuple(rotate_options(dtype, kind)))
    pointers = [ctypes.c_uint64() for _ in range(3)]
    return Launch(built, 1, threads, *pointers, ctypes.c_uint32(columns), ctypes.c_uint32(padded))


def rotate(x: torch.Tensor, kind: str) -> EightBit:
    """See `Fast.rotate`."""
    rows, columns = x.shape
    if columns > MAX_COLUMNS:
        return eight_bit.rotate(x, kind)
    x = x.contiguous()
    if x.data_ptr() % 16:
        x = x.clone()
    if columns % BLOCK:
        values = torch.empty((rows, -(-columns // BLOCK) * BLOCK), dtype=DTYPES[kind], device=x.device)
    else:  # at half the host's time
        values = torch.empty_like(x, dtype=DTYPES[kind])
    scales = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    launch = _rotate_launch(x.device.index or 0, columns, x.dtype, kind)
    launch.blocks = rows
    for argument, tensor in zip(launch.arguments, (x, values, scales), strict=False):
        argument.value = tensor.data_ptr()
    launch()
    return EightBit(values, scales)


@functools.lru_cache(maxsize=64)
def _peak(table: torch.Tensor) -> float:
    return float(table.abs().max())


def prepare(packed: PackedLayer, kind: str) -> EightBitRun:
    """See `Fast.prepare`; by the definition where the kernel cannot be used."""
    if not _weight_proven(packed.codes.device, packed.bits, packed.packing, kind):
        return eager.prepare_eight_bit(packed, kind)
    return _weight_run(_weight_launch(packed.codes.device.index or 0, packed.bits, packed.packing, kind), packed)


def once(packed: PackedLayer, out: EightBit, kind: str) -> None:
    """See `Fast.once`: for compiled code, which has nowhere to keep a launch."""
    if not _weight_proven(packed.codes.device, packed.bits, packed.packing, kind):
        eager.prepare_eight_bit(packed, kind)(out)
        return
    _weight_run(_shared_weight_launch(packed.codes.device.index or 0, packed.bits, packed.packing, kind), packed)(out)


def _weight_launch(device_index: int, bits: int, packing: str, kind: str) -> Launch:
    built = kernel(device_index, WEIGHT, "hlwq_eight_bit", tuple(weight_options(bits, packing, kind)))
    pointers = [ctypes.c_uint64() for _ in range(5)]
    return Launch(built, 1, THREADS, *pointers, ctypes.c_uint32(), ctypes.c_uint32(), ctypes.c_float())


_shared_weight_launch = functools.lru_cache(maxsize=64)(_weight_launch)


def _weight_run(launch: Launch, packed: PackedLayer) -> EightBitRun:
    """Point a launch at a weight; what is returned writes it to where it is told."""
    whole = packed.contiguous()
    table = packed.table(packed.codes.device)
    launch.blocks = -(-whole.norms.shape[0] * 32 // THREADS)
    pointers = whole.codes.data_ptr(), whole.norms.data_ptr(), table.data_ptr(), 0, 0
    for argument, value in zip(launch.arguments, (*pointers, *whole.norms.shape, _peak(table)), strict=True):
        argument.value = value

    def run(out: EightBit, held: tuple[PackedLayer, torch.Tensor] = (whole, table)) -> None:
        launch.arguments[3].value, launch.arguments[4].value = out.values.data_ptr(), out.scales.data_ptr()
        launch()

    return run


@functools.lru_cache(maxsize=64)
def _weight_proven(device: torch.device, bits: int, packing: str, kind: str) -> bool:
    """Whether the kernel for weights gives what its definition does; a warning if not."""
    try:
        _prove_weight(device, bits, packing, kind)
    except (OSError, RuntimeError) as error:
        _log.warning("HLWQ: the kernel for %s weights (%d bits, %s) cannot be used: %s", kind, bits, packing, error)
        return False
    return True


def _prove_weight(device: torch.device, bits: int, packing: str, kind: str) -> EightBit:
    packed = proof.random_layer(64, 3, bits, packing, torch.Generator().manual_seed(0))
    made = eight_bit.empty(64, packed.padded, kind, device)
    _weight_run(_weight_launch(device.index or 0, bits, packing, kind), packed.to(device))(made)
    proof.compare("the kernel for weights", made.dense().cpu(), eight_bit.weight(packed, kind).dense(), 2e-2)
    return made


@functools.lru_cache(maxsize=16)
def _scale_launch(device_index: int, dtype: torch.dtype, bias: bool) -> Launch:
    built = kernel(device_index, SCALE, "hlwq_scale", tuple(scale_options(dtype, bias)))
    return Launch(built, 1, THREADS, *[ctypes.c_uint64() for _ in range(5)], ctypes.c_uint32())


def scale(
    sums: torch.Tensor,
    row_scales: torch.Tensor,
    column_scales: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """`out = sums · row_scales · column_scales + bias`: int32 `[rows, columns]` to `out`'s type."""
    bias = None if bias is None else bias.to(out.dtype)
    launch = _scale_launch(out.device.index or 0, out.dtype, bias is not None)
    launch.blocks = sums.shape[0]
    tensors = (sums, row_scales, column_scales, out if bias is None else bias, out)
    for argument, tensor in zip(launch.arguments, tensors, strict=False):
        argument.value = tensor.data_ptr()
    launch.arguments[5].value = sums.shape[1]
    launch()


# Shapes (rows, padded, out) that the vendor's product does not take together with a bias: few rows, long ones.
_bias_apart: set[tuple[int, int, int]] = set()


def multiply_fp8(x: EightBit, w: EightBit, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """See `Fast.multiply`; `out_features` must be a multiple of 16."""
    if bias is not None and bias.dtype is not torch.bfloat16:
        bias = bias.to(torch.bfloat16)
    result = _scaled_product(x, w, bias)
    return result if dtype is torch.bfloat16 else result.to(dtype)


def _scaled_product(x: EightBit, w: EightBit, bias: torch.Tensor | None) -> torch.Tensor:
    a, b = x.values, w.values.t()
    # Scales a row want a bfloat16 result.
    scales = x.scales, w.scales.t()
    if bias is None:
        return torch._scaled_mm(a, b, *scales, None, None, torch.bfloat16, True)
    shape = (*a.shape, b.shape[1])
    if shape not in _bias_apart:
        try:
            return torch._scaled_mm(a, b, *scales, bias, None, torch.bfloat16, True)
        except RuntimeError as error:
            if not is_refusal(error):
                raise
            _bias_apart.add(shape)
    return torch._scaled_mm(a, b, *scales, None, None, torch.bfloat16, True).add_(bias)


def multiply_int8(x: EightBit, w: EightBit, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """See `Fast.multiply`; `out_features` must be a multiple of 16."""
    rows, columns = x.values.shape[0], w.values.shape[0]
    out = torch.empty((rows, columns), dtype=dtype, device=x.values.device)
    step = max(MIN_INT8_ROWS, SUMS // columns)
    for start in range(0, rows, step):
        # The last piece begins earlier where it would be too short, and writes some rows again.
        start = min(start, max(0, rows - MIN_INT8_ROWS))
        part = slice(start, min(rows, start + step))
        sums = torch._int_mm(x.values[part], w.values.t())
        scale(sums, x.scales[part], w.scales, bias, out[part])
    return out


def prove(device: torch.device, kind: str) -> None:
    """Compare the kernels and the vendor's product with their definitions in torch, on small random data.

    Raises:
        RuntimeError: one of them differs, or cannot be built or run.
    """
    multiply = multiply_fp8 if kind == "fp8" else multiply_int8
    made = _prove_weight(device, 5, "msb", kind)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(48, made.values.shape[1] - 56, generator=generator).bfloat16()
    bias = torch.randn(made.values.shape[0], generator=generator).bfloat16()
    rotated = rotate(x.to(device), kind)
    proof.compare("the kernel for activations", rotated.dense().cpu(), eight_bit.rotate(x, kind).dense(), 2e-2)
    product = multiply(rotated, made, bias.to(device), torch.bfloat16)
    on_cpu = [EightBit(pair.values.cpu(), pair.scales.cpu()) for pair in (rotated, made)]
    expected = eight_bit.multiply(on_cpu[0], on_cpu[1], bias, torch.float32)
    proof.compare("the product", product.float().cpu(), expected, 1e-2)
