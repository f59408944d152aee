"""Decoding and fast mode as operators of torch, which compiled code sees as one piece each.

Compiled code cannot hold tensors that are not its inputs, as a codebook is, and takes no objects of ours: hence operators that
take the fields of a `PackedLayer` one by one, the codebook by its name. They are declared here and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from .. import backends
from ..backends.eight_bit import DTYPES, EightBit
from ..format.packed import PackedLayer
from ..format.sizes import BLOCK
from . import scratch

# Operators go when their library does.
_libraries: list[torch.library.Library] = []


def _operator(fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Register an operator of torch under the function's name; `fake` makes results of the same shapes from its arguments.

    Each copy of the pack in a process has its own, because each has its own stored codebooks. Not by
    `torch.library.custom_op`, whose checks of every call take 3 of its 15 µs on the host.
    """

    def declare(function: Callable[..., Any]) -> Any:
        namespace, name = "hlwq", function.__name__.strip("_")
        while hasattr(getattr(torch.ops, namespace), name):
            namespace += "_"
        library = torch.library.Library(namespace, "FRAGMENT")
        _libraries.append(library)
        library.define(name + torch.library.infer_schema(function, mutates_args=()))
        library.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{namespace}::{name}", fake, lib=library)
        return getattr(getattr(torch.ops, namespace), name).default

    return declare


def _layer(
    codes: torch.Tensor, norms: torch.Tensor, bits: int, packing: str, codebook: str, columns: int
) -> PackedLayer:
    return PackedLayer(codes, norms, bits, packing, codebook, (codes.shape[0], columns))


def fields(packed: PackedLayer) -> tuple[torch.Tensor, torch.Tensor, int, str, str, int]:
    """A packed weight as the operators take it."""
    return packed.codes, packed.norms, packed.bits, packed.packing, packed.codebook, packed.shape[1]


@_operator(
    lambda codes, norms, bits, packing, codebook, columns, dtype, backend: codes.new_empty(
        (codes.shape[0], columns), dtype=dtype
    )
)
def decode(
    codes: torch.Tensor,
    norms: torch.Tensor,
    bits: int,
    packing: str,
    codebook: str,
    columns: int,
    dtype: torch.dtype,
    backend: str,
) -> torch.Tensor:
    """The weight `[out, in]` of `dtype`, by the backend that `backends.choose` gives."""
    return backends.decode(_layer(codes, norms, bits, packing, codebook, columns), dtype, backend)


def _rotated_shape(x: torch.Tensor) -> tuple[int, int]:
    return math.prod(x.shape[:-1]), -(-x.shape[-1] // BLOCK) * BLOCK


@_operator(
    lambda x, kind: (
        x.new_empty(_rotated_shape(x), dtype=DTYPES[kind]),
        x.new_empty((_rotated_shape(x)[0], 1), dtype=torch.float32),
    )
)
def rotate_rows(x: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations `[..., in]` in 8 bits: values `[rows, padded]` and scales `[rows, 1]`."""
    values, scales = backends.fast_mode(x.device, kind).rotate(x.reshape(-1, x.shape[-1]))
    return values, scales


def _multiply(
    rotated: EightBit, packed: PackedLayer, bias: torch.Tensor | None, kind: str, dtype: torch.dtype
) -> torch.Tensor:
    fast = backends.fast_mode(packed.codes.device, kind)
    weight = scratch.eight_bit(packed.shape[0], packed.padded, kind, packed.codes.device)
    fast.weight(packed, weight)
    return fast.multiply(rotated, weight, bias, dtype)


@_operator(lambda values, scales, codes, *rest: values.new_empty((values.shape[0], codes.shape[0]), dtype=rest[-1]))
def fast_linear(
    values: torch.Tensor,
    scales: torch.Tensor,
    codes: torch.Tensor,
    norms: torch.Tensor,
    bits: int,
    packing: str,
    codebook: str,
    columns: int,
    bias: torch.Tensor | None,
    kind: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The product of rotated activations with a packed weight, `[rows, out]` of `dtype`."""
    packed = _layer(codes, norms, bits, packing, codebook, columns)
    return _multiply(EightBit(values, scales), packed, bias, kind, dtype)


@_operator(lambda x, codes, *rest: x.new_empty((math.prod(x.shape[:-1]), codes.shape[0])))
def rotate_and_multiply(
    x: torch.Tensor,
    codes: torch.Tensor,
    norms: torch.Tensor,
    bits: int,
    packing: str,
    codebook: str,
    columns: int,
    bias: torch.Tensor | None,
    kind: str,
) -> torch.Tensor:
    """Both in one, for layers that share their input with no other: getting in and out of an operator is half of its time on
    the host."""
    packed = _layer(codes, norms, bits, packing, codebook, columns)
    rotated = backends.fast_mode(x.device, kind).rotate(x.reshape(-1, x.shape[-1]))
    return _multiply(rotated, packed, bias, kind, x.dtype)
