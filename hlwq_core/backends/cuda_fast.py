"""The kernels of fast mode on CUDA (see fast.py): rotating activations, weights to 8 bits, scaling INT8 sums."""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable
from pathlib import Path

import torch

from ..format.codebook import BLOCK
from ..running import fast
from . import cuda, proof
from .nvrtc import Kernel, Launch

_log = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent
ROTATE, WEIGHT, SCALE = _FOLDER / "rotate.cu", _FOLDER / "eight_bit.cu", _FOLDER / "scale.cu"
THREADS = 256
MAX_COLUMNS = 16 * 1024  # 1,024 threads of 16 columns


def rotate_options(dtype: torch.dtype, kind: str) -> list[str]:
    """Definitions of the kernel that rotates activations."""
    return [f"-DOUTPUT={cuda.OUTPUTS[dtype]}", f"-DEIGHT={fast.KINDS.index(kind)}"]


def weight_options(bits: int, packing: str, kind: str) -> list[str]:
    """Definitions of the kernel that makes 8-bit weights."""
    return [*cuda.options(bits, packing, torch.float32), f"-DEIGHT={fast.KINDS.index(kind)}"]


def scale_options(dtype: torch.dtype, bias: bool) -> list[str]:
    """Definitions of the kernel that scales INT8 sums."""
    return [f"-DOUTPUT={cuda.OUTPUTS[dtype]}", f"-DBIAS={int(bias)}"]


@functools.lru_cache(maxsize=128)
def _kernel(device_index: int, source: Path, name: str, definitions: tuple[str, ...]) -> Kernel:
    with torch.cuda.device(device_index):
        return Kernel(device_index, source, name, definitions)


@functools.lru_cache(maxsize=256)
def _rotate_launch(device_index: int, columns: int, dtype: torch.dtype, kind: str) -> Launch:
    padded = -(-columns // BLOCK) * BLOCK
    threads = -(-padded // (16 * 32)) * 32
    kernel = _kernel(device_index, ROTATE, "hlwq_rotate", tuple(rotate_options(dtype, kind)))
    pointers = [ctypes.c_uint64() for _ in range(3)]
    return Launch(kernel, 1, threads, *pointers, ctypes.c_uint32(columns), ctypes.c_uint32(padded))


def rotate(x: torch.Tensor, kind: str) -> fast.EightBit:
    """As `fast.rotate`."""
    rows, columns = x.shape
    if columns > MAX_COLUMNS:
        return fast.rotate_reference(x, kind)
    x = x.contiguous()
    if x.data_ptr() % 16:
        x = x.clone()
    if columns % BLOCK:
        values = torch.empty((rows, -(-columns // BLOCK) * BLOCK), dtype=fast.DTYPES[kind], device=x.device)
    else:  # at half the host's time
        values = torch.empty_like(x, dtype=fast.DTYPES[kind])
    scales = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    launch = _rotate_launch(x.device.index or 0, columns, x.dtype, kind)
    launch.blocks = rows
    for argument, tensor in zip(launch.arguments, (x, values, scales), strict=False):
        argument.value = tensor.data_ptr()
    launch()
    return fast.EightBit(values, scales)


@functools.lru_cache(maxsize=64)
def _peak(table: torch.Tensor) -> float:
    return float(table.abs().max())


def prepare_weight(
    codes: torch.Tensor, norms: torch.Tensor, table: torch.Tensor, bits: int, packing: str, kind: str
) -> Callable[[fast.EightBit], object] | None:
    """As `fast.prepare_weight`; None where there is no kernel that can."""
    if not _weight_proven(codes.device, bits, packing, kind):
        return None
    return _weight_run(_weight_launch(codes.device.index or 0, bits, packing, kind), codes, norms, table)


def weight(
    codes: torch.Tensor,
    norms: torch.Tensor,
    table: torch.Tensor,
    bits: int,
    packing: str,
    kind: str,
    out: fast.EightBit,
) -> bool:
    """Once, without preparing; whether there is a kernel that can. For compiled code, which has nowhere to keep a launch."""
    proven = _weight_proven(codes.device, bits, packing, kind)
    if proven:
        _weight_run(_shared_weight_launch(codes.device.index or 0, bits, packing, kind), codes, norms, table)(out)
    return proven


def _weight_launch(device_index: int, bits: int, packing: str, kind: str) -> Launch:
    kernel = _kernel(device_index, WEIGHT, "hlwq_eight_bit", tuple(weight_options(bits, packing, kind)))
    pointers = [ctypes.c_uint64() for _ in range(5)]
    return Launch(kernel, 1, THREADS, *pointers, ctypes.c_uint32(), ctypes.c_uint32(), ctypes.c_float())


_shared_weight_launch = functools.lru_cache(maxsize=64)(_weight_launch)


def _weight_run(
    launch: Launch, codes: torch.Tensor, norms: torch.Tensor, table: torch.Tensor
) -> Callable[[fast.EightBit], object]:
    """Point a launch at a weight; what is returned writes it to where it is told."""
    codes, norms = codes.contiguous(), norms.contiguous()
    if codes.data_ptr() % 2:
        codes = codes.clone()
    launch.blocks = -(-norms.shape[0] * 32 // THREADS)
    values = (codes.data_ptr(), norms.data_ptr(), table.data_ptr(), 0, 0, *norms.shape, _peak(table))
    for argument, value in zip(launch.arguments, values, strict=True):
        argument.value = value

    def run(out: fast.EightBit, held: tuple[torch.Tensor, ...] = (codes, norms, table)) -> None:
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


def _prove_weight(device: torch.device, bits: int, packing: str, kind: str) -> fast.EightBit:
    rows, num_blocks = 64, 3
    codes, norms, table = proof.random_layer(rows, num_blocks, bits, packing, torch.Generator().manual_seed(0))
    values = torch.empty((rows, num_blocks * BLOCK), dtype=fast.DTYPES[kind], device=device)
    made = fast.EightBit(values, torch.empty((rows, 1), dtype=torch.float32, device=device))
    launch = _weight_launch(device.index or 0, bits, packing, kind)
    _weight_run(launch, codes.to(device), norms.to(device), table.to(device))(made)
    expected = fast.weight_reference(codes, norms, table, bits, packing, kind)
    proof.compare("the kernel for weights", _dense(made).cpu(), _dense(expected), 2e-2)
    return made


@functools.lru_cache(maxsize=16)
def _scale_launch(device_index: int, dtype: torch.dtype, bias: bool) -> Launch:
    kernel = _kernel(device_index, SCALE, "hlwq_scale", tuple(scale_options(dtype, bias)))
    return Launch(kernel, 1, THREADS, *[ctypes.c_uint64() for _ in range(5)], ctypes.c_uint32())


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


def prove(device: torch.device, kind: str) -> None:
    """Compare the kernels and the vendor's product with their definitions in torch, on small random data.

    Raises:
        RuntimeError: one of them differs, or cannot be built or run.
    """
    made = _prove_weight(device, 5, "msb", kind)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(48, made.values.shape[1] - 56, generator=generator).bfloat16()
    bias = torch.randn(made.values.shape[0], generator=generator).bfloat16()
    rotated = rotate(x.to(device), kind)
    proof.compare("the kernel for activations", _dense(rotated).cpu(), _dense(fast.rotate_reference(x, kind)), 2e-2)
    product = fast.multiply(rotated, made, bias.to(device), torch.bfloat16)
    on_cpu = [fast.EightBit(pair.values.cpu(), pair.scales.cpu()) for pair in (rotated, made)]
    expected = fast.multiply_reference(on_cpu[0], on_cpu[1], bias, torch.float32)
    proof.compare("the product", product.float().cpu(), expected, 1e-2)


def _dense(pair: fast.EightBit) -> torch.Tensor:
    return pair.values.float() * pair.scales
