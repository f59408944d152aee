"""The steps of activations on CUDA (see backends/activations.py): rotated and rounded to 8 bits in the same pass over them."""

from __future__ import annotations

import ctypes
import functools
import itertools
import logging
from pathlib import Path

import torch

from ...format.codebook import BLOCK
from .. import activations, eight_bit, proof
from ..activations import Steps
from ..eight_bit import DTYPES, KINDS, EightBit
from . import decode
from .eight_bit import MAX_COLUMNS, ROTATE, kernel, rotate, rotate_options
from .nvrtc import Launch

ADD_PRODUCT, NORM_ROPE = (Path(__file__).with_name(name) for name in ("add_product.cu", "norm_rope.cu"))
# Sizes of a head whose halves lie whole threads apart, within a warp.
ROPE_SIZES = (32, 64, 128, 256)
# Its matrices, 4 numbers for 2 columns, go through 48 KB of shared memory.
MAX_ROPE_COLUMNS = 5120
MODULATED, GATED, GELU = 1, 2, 3

_log = logging.getLogger("hlwq")


def step_of(steps: Steps) -> int:
    """The kernel's number for it."""
    return GELU if steps.gelu else GATED if steps.gates is not None else MODULATED


def add_product_options(dtype: torch.dtype) -> list[str]:
    """Definitions of the kernel that adds a product."""
    return [f"-DOUTPUT={decode.OUTPUTS[dtype]}"]


def norm_rope_options(dtype: torch.dtype, frequencies: torch.dtype, columns: int) -> list[str]:
    """Definitions of the kernel for queries and keys."""
    return [
        f"-DOUTPUT={decode.OUTPUTS[dtype]}",
        f"-DFREQUENCIES={int(frequencies is dtype and dtype is not torch.float32)}",
        f"-DCOLUMNS={columns}",
    ]


def _threads(columns: int) -> int:
    return -(-columns // (16 * 32)) * 32


@functools.lru_cache(maxsize=256)
def _launch(device_index: int, columns: int, dtype: torch.dtype, kind: str, step: int, dense: bool) -> Launch:
    padded = -(-columns // BLOCK) * BLOCK
    built = kernel(device_index, ROTATE, "hlwq_rotate", tuple(rotate_options(dtype, kind, step, dense)))
    pointers = [ctypes.c_uint64() for _ in range(3)]
    sizes = ctypes.c_uint32(columns), ctypes.c_uint32(padded)
    more = ctypes.c_uint64(), ctypes.c_uint64(), *[ctypes.c_uint32() for _ in range(3)], ctypes.c_uint64()
    return Launch(built, 1, _threads(padded), *pointers, *sizes, *more)


def _reads(tensor: torch.Tensor, like: torch.Tensor) -> bool:
    """Whether a kernel reads its rows in vectors."""
    return (
        tensor.dtype is like.dtype
        and tensor.device == like.device
        and tensor.stride(-1) == 1
        and tensor.stride(0) * tensor.element_size() % 16 == 0
        and tensor.data_ptr() % 16 == 0
    )


def _fits(x: torch.Tensor, steps: Steps) -> bool:
    columns = x.shape[1]
    if columns % 16 or columns > MAX_COLUMNS or not x.is_contiguous() or x.data_ptr() % 16:
        return False
    if steps.gates is not None:
        heads = steps.gates.shape[1]
        return steps.gates.is_contiguous() and steps.gates.dtype is x.dtype and columns % (16 * heads) == 0
    return steps.gelu or all(tensor is not None and _reads(tensor, x) for tensor in (steps.factor, steps.shift))


def rotate_after(x: torch.Tensor, steps: Steps, dense: bool, kind: str) -> tuple[EightBit, torch.Tensor | None]:
    """See `Fast.rotate_after`."""
    if not _fits(x, steps) or not _proven(x.device, kind):
        whole = activations.apply(x, steps).to(x.dtype)
        return rotate(whole, kind), whole if dense else None
    rows, columns = x.shape
    values = torch.empty((rows, -(-columns // BLOCK) * BLOCK), dtype=DTYPES[kind], device=x.device)
    scales = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    beside = torch.empty_like(x) if dense else None
    _rotate(x, steps, values, scales, beside, kind)
    return EightBit(values, scales), beside


def _rotate(
    x: torch.Tensor, steps: Steps, values: torch.Tensor, scales: torch.Tensor, whole: torch.Tensor | None, kind: str
) -> None:
    rows, columns = x.shape
    launch = _launch(x.device.index or 0, columns, x.dtype, kind, step_of(steps), whole is not None)
    launch.blocks = rows
    first, second = steps.factor if steps.gates is None else steps.gates, steps.shift
    strides = (0, 0, columns // steps.gates.shape[1]) if steps.gates is not None else (0, 0, 1)
    if steps.factor is not None and steps.shift is not None:
        strides = steps.factor.stride(0), steps.shift.stride(0), rows // steps.factor.shape[0]
    numbers = [x.data_ptr(), values.data_ptr(), scales.data_ptr(), columns, values.shape[1]]
    numbers += [0 if tensor is None else tensor.data_ptr() for tensor in (first, second)]
    numbers += [*strides, 0 if whole is None else whole.data_ptr()]
    for argument, number in zip(launch.arguments, numbers, strict=True):
        argument.value = number
    launch()


@functools.lru_cache(maxsize=64)
def _add_launch(device_index: int, columns: int, dtype: torch.dtype) -> Launch:
    built = kernel(device_index, ADD_PRODUCT, "hlwq_add_product", tuple(add_product_options(dtype)))
    numbers = [ctypes.c_uint64() for _ in range(3)], [ctypes.c_uint32() for _ in range(3)]
    return Launch(built, 1, _threads(columns), *numbers[0], *numbers[1])


def add_product(x: torch.Tensor, other: torch.Tensor, factor: torch.Tensor) -> None:
    """See `Fast.add_product`."""
    rows, columns = x.shape
    whole = x.is_contiguous() and other.is_contiguous() and all(_reads(tensor, x) for tensor in (x, other, factor))
    if not whole or columns % 16 or columns > MAX_COLUMNS or not _proven(x.device, KINDS[0]):
        activations.add_product(x, other, factor)
        return
    _add(x, other, factor)


def _add(x: torch.Tensor, other: torch.Tensor, factor: torch.Tensor) -> None:
    rows, columns = x.shape
    launch = _add_launch(x.device.index or 0, columns, x.dtype)
    launch.blocks = rows
    numbers = x.data_ptr(), other.data_ptr(), factor.data_ptr(), columns, factor.stride(0), rows // factor.shape[0]
    for argument, number in zip(launch.arguments, numbers, strict=True):
        argument.value = number
    launch()


@functools.lru_cache(maxsize=64)
def _rope_launch(device_index: int, columns: int, dtype: torch.dtype, frequencies: torch.dtype) -> Launch:
    options = tuple(norm_rope_options(dtype, frequencies, columns))
    built = kernel(device_index, NORM_ROPE, "hlwq_norm_rope", options)
    numbers = [ctypes.c_uint64() for _ in range(4)], [ctypes.c_uint32() for _ in range(2)]
    return Launch(built, 1, _threads(columns), *numbers[0], *numbers[1], ctypes.c_float())


def norm_rope(x: torch.Tensor, weight: torch.Tensor, frequencies: torch.Tensor, epsilon: float) -> torch.Tensor:
    """See `Fast.norm_rope`."""
    columns, size = x.shape[1], 2 * frequencies.shape[2]
    whole = x.is_contiguous() and frequencies.is_contiguous() and _reads(x, x) and _reads(weight[None], x)
    fits = columns % 32 == 0 and columns <= MAX_ROPE_COLUMNS and size in ROPE_SIZES and frequencies.device == x.device
    known = frequencies.dtype in (torch.float32, x.dtype)
    if not (whole and fits and known) or not _proven(x.device, KINDS[0]):
        return activations.norm_rope(x, weight, frequencies, epsilon)
    return _rope(x, weight, frequencies, epsilon)


def _rope(x: torch.Tensor, weight: torch.Tensor, frequencies: torch.Tensor, epsilon: float) -> torch.Tensor:
    rows, columns = x.shape
    tokens, _, half = frequencies.shape[:3]
    out = torch.empty_like(x)
    launch = _rope_launch(x.device.index or 0, columns, x.dtype, frequencies.dtype)
    launch.blocks = rows
    addresses = [tensor.data_ptr() for tensor in (x, weight, frequencies, out)]
    for argument, number in zip(launch.arguments, (*addresses, tokens, 2 * half, epsilon), strict=True):
        argument.value = number
    launch()
    return out


@functools.lru_cache(maxsize=16)
def _proven(device: torch.device, kind: str) -> bool:
    """Whether the kernels give what their definitions do; a warning if not."""
    try:
        prove(device, kind)
    except (OSError, RuntimeError) as error:
        _log.warning("HLWQ: activations are rotated in a pass of its own: %s", error)
        return False
    return True


def prove(device: torch.device, kind: str) -> None:
    """Compare each step's kernel with its definition, on small random data.

    Raises:
        RuntimeError: one of them differs, or cannot be built or run.
    """
    generator = torch.Generator().manual_seed(2)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).bfloat16()

    rows, columns = 48, 384
    x = numbers(rows, columns)
    modulated = Steps(factor=numbers(4, columns), shift=numbers(4, columns))
    for steps, dense in itertools.product((modulated, Steps(gates=numbers(rows, 3)), Steps(gelu=True)), (False, True)):
        moved = steps.to(device)
        made = eight_bit.empty(rows, columns, kind, device)
        whole = torch.empty_like(x, device=device) if dense else None
        _rotate(x.to(device), moved, made.values, made.scales, whole, kind)
        expected = activations.apply(x, steps)
        rotated = eight_bit.rotate(expected, kind).dense()
        proof.compare(f"the kernel of step {step_of(steps)}", made.dense().cpu(), rotated, 2e-2)
        if whole is not None:
            proof.compare(f"the result of step {step_of(steps)}", whole.float().cpu(), expected, 1e-2)
    for size in (64, 128):
        frequencies = numbers(24, columns // size, size // 2, 2, 2)
        arguments = x, numbers(columns), frequencies
        roped = _rope(x.to(device), arguments[1].to(device), frequencies.to(device), 1e-5)
        proof.compare(
            "the kernel of norm and rope", roped.float().cpu(), activations.norm_rope(*arguments, 1e-5).float(), 2e-2
        )
    other, factor = numbers(rows, columns), numbers(4, columns)
    found, sums = x.to(device), x.float()
    _add(found, other.to(device), factor.to(device))
    activations.add_product(sums, other.float(), factor.float())
    proof.compare("the kernel that adds a product", found.float().cpu(), sums, 1e-2)
