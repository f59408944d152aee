"""Fast mode: the activations are rotated instead of the weights un-rotated, and both are multiplied in 8 bits.

`W = R · H` with the packed weight's levels and norms in R and the Walsh-Hadamard matrix H, so `x · Wᵀ = (x · H) · Rᵀ`. R goes
to 8 bits by look-up and one scale a row; x is transformed once for all the projections that read it, with one scale a row;
the vendor's matrix product does the rest. FP8 (e4m3) on Ada and later, INT8 on Turing and Ampere.

Everything here has a definition in plain torch, which the kernels are compared with before they are used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch

from ..errors import is_refusal
from ..format.codebook import BLOCK
from ..format.hadamard import hadamard
from ..format.packing import unpack
from . import operators

KINDS = ("fp8", "int8")
INPUTS = (torch.bfloat16, torch.float16, torch.float32)
DTYPES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
LIMITS = {"fp8": 448.0, "int8": 127.0}
CAPABILITY = {"fp8": (8, 9), "int8": (7, 5)}
# With fewer rows of activations, reading the weight is all that counts, exact decoding reads no more, and it is one launch
# where fast mode takes two.
MIN_ROWS = 512
# INT8 sums are 4 bytes: this many rows' sums are held at a time.
SUMS = 1 << 24
# The vendor's INT8 product takes no fewer than 17 rows.
MIN_INT8_ROWS = 32


class EightBit(NamedTuple):
    """A matrix in 8 bits, rotated block by block.

    Attributes:
        values: float8 or int8 `[rows, padded]`, padded to whole blocks.
        scales: float32 `[rows, 1]`: the matrix is `values · scales`.
    """

    values: torch.Tensor
    scales: torch.Tensor


def round_rows(x: torch.Tensor, kind: str) -> EightBit:
    """float32 `[rows, padded]` to 8 bits with one scale a row."""
    scales = x.abs().amax(dim=1, keepdim=True) / LIMITS[kind]
    return EightBit(_rounded(x * _inverse(scales), kind), scales)


def _inverse(scales: torch.Tensor) -> torch.Tensor:
    """0 where a row is zero."""
    return torch.where(scales > 0, 1 / scales, 0)


def _rounded(scaled: torch.Tensor, kind: str) -> torch.Tensor:
    return scaled.to(DTYPES[kind]) if kind == "fp8" else scaled.round().to(torch.int8)


def rotate_reference(x: torch.Tensor, kind: str) -> EightBit:
    """What `rotate` computes, in plain torch, on any device."""
    rows, columns = x.shape
    padded = torch.nn.functional.pad(x.float(), (0, -columns % BLOCK))
    return round_rows((padded.reshape(-1, BLOCK) @ hadamard(str(x.device))).reshape(rows, -1), kind)


def weight_reference(
    codes: torch.Tensor, norms: torch.Tensor, table: torch.Tensor, bits: int, packing: str, kind: str
) -> EightBit:
    """What `weight` computes, in plain torch, on any device. The scale is that of the row's largest norm and level."""
    rows, num_blocks = norms.shape
    levels = table[unpack(codes, bits, packing).int()].reshape(rows, num_blocks, BLOCK)
    scales = norms.float().amax(dim=1, keepdim=True) * table.abs().max() / LIMITS[kind]
    factors = norms.float() * _inverse(scales)
    return EightBit(_rounded((levels * factors[:, :, None]).reshape(rows, -1), kind), scales)


def multiply_reference(x: EightBit, w: EightBit, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """What `multiply` computes, in plain torch, on any device."""
    product = (x.values.float() @ w.values.float().t()) * x.scales * w.scales.t()
    return (product if bias is None else product + bias.float()).to(dtype)


def unavailable_reason(device: torch.device) -> str | None:
    """Why fast mode cannot run on `device`, as far as its capabilities tell; None if it should. Builds nothing."""
    from ..backends import nvrtc

    reason = nvrtc.unavailable_reason(device)
    if reason is not None:
        return reason
    if torch.cuda.get_device_capability(device) < min(CAPABILITY.values()):
        return "the card has no 8-bit tensor cores (they came with Turing, compute capability 7.5)"
    return None


@functools.lru_cache(maxsize=16)
def choose(device: torch.device) -> tuple[str | None, str | None]:
    """The kind of 8 bits for a device, or None and why. Builds the kernels and proves them, once."""
    reason = unavailable_reason(device)
    if reason is not None:
        return None, reason
    from ..backends import cuda_fast

    capability = torch.cuda.get_device_capability(device)
    reasons = []
    for kind in KINDS:
        if capability < CAPABILITY[kind]:
            continue
        try:
            cuda_fast.prove(device, kind)
        except (OSError, RuntimeError) as error:
            reasons.append(f"{kind}: {str(error).splitlines()[0]}")
            continue
        return kind, None
    return None, "; ".join(reasons)


def rotate(x: torch.Tensor, kind: str) -> EightBit:
    """Rotate activations and round them to 8 bits.

    Args:
        x: `[rows, columns]` of one of `INPUTS`.
        kind: `fp8` or `int8`.
    """
    if x.device.type == "cuda":
        from ..backends import cuda_fast

        return cuda_fast.rotate(x, kind)
    return rotate_reference(x, kind)


def weight(
    codes: torch.Tensor, norms: torch.Tensor, table: torch.Tensor, bits: int, packing: str, kind: str
) -> EightBit:
    """A packed weight in 8 bits, by the kernel in the device's scratch buffer: use it before the next layer is decoded.

    Args:
        codes, norms, table, bits, packing: as for `backends.eager.decode`.
        kind: `fp8` or `int8`.
    """
    if codes.device.type == "cuda":
        from ..backends import cuda_fast

        out = scratch(norms.shape[0], norms.shape[1] * BLOCK, kind, codes.device)
        if cuda_fast.weight(codes, norms, table, bits, packing, kind, out):
            return out
    return weight_reference(codes, norms, table, bits, packing, kind)


def scratch(rows: int, padded: int, kind: str, device: torch.device) -> EightBit:
    """A weight's place in the device's scratch buffer, valid until the next layer is decoded."""
    return EightBit(
        operators.scratch(rows, padded, DTYPES[kind], device),
        operators.scratch(rows, 1, torch.float32, device, "scales"),
    )


def prepare_weight(
    codes: torch.Tensor, norms: torch.Tensor, table: torch.Tensor, bits: int, packing: str, kind: str
) -> Callable[[EightBit], object]:
    """A function that writes the packed weight in 8 bits to where it is told; on CUDA one call into the driver.

    Args:
        codes, norms, table, bits, packing: as for `backends.eager.decode`.
        kind: `fp8` or `int8`.
    """
    if codes.device.type == "cuda":
        from ..backends import cuda_fast

        run = cuda_fast.prepare_weight(codes, norms, table, bits, packing, kind)
        if run is not None:
            return run

    def reference(out: EightBit) -> None:
        made = weight_reference(codes, norms, table, bits, packing, kind)
        out.values.copy_(made.values)
        out.scales.copy_(made.scales)

    return reference


class SharedInput:
    """Layers that read the same input, one right after the other, transform it once: q, k and v of an attention."""

    def __init__(self) -> None:
        self._input: torch.Tensor | None = None
        self._rotated: tuple[torch.Tensor, torch.Tensor] | None = None

    def rotate(
        self, x: torch.Tensor, last: bool, make: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`make(x)`, or what it gave for the layer before, if that had the same tensor.

        Args:
            x: any shape.
            last: whether no layer after this one shares it: nothing is kept then.
            make: gives values and scales.
        """
        rotated = self._rotated
        if rotated is None or self._input is not x:
            rotated = make(x)
        self._input, self._rotated = (None, None) if last else (x, rotated)
        return rotated

    def clear(self) -> None:
        """Forget the input."""
        self._input = self._rotated = None


def multiply(x: EightBit, w: EightBit, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """`x · wᵀ + bias`.

    Args:
        x: `[rows, padded]`.
        w: `[out, padded]`; `out` and `padded` multiples of 16.
        bias: `[out]`.
        dtype: one of `INPUTS`.

    Returns:
        `[rows, out]` of `dtype`.
    """
    if x.values.device.type != "cuda":
        return multiply_reference(x, w, bias, dtype)
    if w.values.dtype is torch.int8:
        return _multiply_int8(x, w, bias, dtype)
    if bias is not None and bias.dtype is not torch.bfloat16:
        bias = bias.to(torch.bfloat16)
    result = _multiply_fp8(x, w, bias)
    return result if dtype is torch.bfloat16 else result.to(dtype)


# Shapes (rows, padded, out) that the vendor's product does not take together with a bias: few rows, long ones.
_bias_apart: set[tuple[int, int, int]] = set()


def _multiply_fp8(x: EightBit, w: EightBit, bias: torch.Tensor | None) -> torch.Tensor:
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


def _multiply_int8(x: EightBit, w: EightBit, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    from ..backends import cuda_fast

    rows, columns = x.values.shape[0], w.values.shape[0]
    out = torch.empty((rows, columns), dtype=dtype, device=x.values.device)
    step = max(MIN_INT8_ROWS, SUMS // columns)
    for start in range(0, rows, step):
        # The last piece begins earlier where it would be too short, and writes some rows again.
        start = min(start, max(0, rows - MIN_INT8_ROWS))
        part = slice(start, min(rows, start + step))
        sums = torch._int_mm(x.values[part], w.values.t())
        cuda_fast.scale(sums, x.scales[part], w.scales, bias, out[part])
    return out
