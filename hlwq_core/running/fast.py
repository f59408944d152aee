"""Fast mode while a model samples: whether it pays, the layers that share an input, and the product in 8 bits.

What is computed is defined in backends/eight_bit.py; which device computes it how, backends' table says.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from ..backends.eight_bit import EightBit
from . import operators
from .decoders import eight_bit_decoder
from .packed_tensor import HLWQTensor, layer_of
from .pending import Pending

# With fewer rows of activations, reading the weight is all that counts, exact decoding reads no more, and it is one launch
# where fast mode takes two.
MIN_ROWS = 512


class SharedInput:
    """Layers that read the same input, one right after the other, transform it once: q, k and v of an attention."""

    def __init__(self) -> None:
        self._input: torch.Tensor | Pending | None = None
        self._rotated: EightBit | None = None

    def rotate(
        self, x: torch.Tensor | Pending, last: bool, make: Callable[[torch.Tensor | Pending], EightBit]
    ) -> EightBit:
        """`make(x)`, or what it gave for the layer before, if that had the same tensor.

        Args:
            x: any shape.
            last: whether no layer after this one shares it: nothing is kept then.
            make: rotates.
        """
        rotated = self._rotated
        if rotated is None or self._input is not x:
            rotated = make(x)
        self._input, self._rotated = (None, None) if last else (x, rotated)
        return rotated

    def clear(self) -> None:
        """Forget the input."""
        self._input = self._rotated = None


def linear(
    x: torch.Tensor | Pending,
    weight: HLWQTensor,
    bias: torch.Tensor | None,
    kind: str,
    shared: SharedInput | None = None,
    last: bool = True,
    decoded: EightBit | None = None,
    dense: bool = False,
) -> torch.Tensor:
    """`x · Wᵀ + bias` in 8 bits.

    Args:
        x: `[..., in]` of one of `eight_bit.INPUTS`, or what was put off of it.
        weight: packed, `[out, in]`.
        bias: `[out]`.
        kind: `fp8` or `int8`.
        shared: of the layers that read the same input, in turn.
        last: whether this is the last of them.
        decoded: the weight in 8 bits, where somebody kept it.
        dense: whether a layer that is not packed reads `x` later.

    Returns:
        `[..., out]` in the dtype of `x`.
    """
    # An operator of torch costs the host 30 µs; only compiled code needs it.
    if torch.compiler.is_compiling():
        assert isinstance(x, torch.Tensor)
        result = _compiled(x, weight, bias, kind, shared, last)
    else:
        decoder = eight_bit_decoder(weight, kind)
        rotate = functools.partial(decoder.rotate, dense=dense)
        rotated = rotate(x) if shared is None else shared.rotate(x, last, rotate)
        result = decoder.multiply(rotated, decoder() if decoded is None else decoded, bias, x.dtype)
    return result.view(*x.shape[:-1], result.shape[1])


def _compiled(
    x: torch.Tensor,
    weight: HLWQTensor,
    bias: torch.Tensor | None,
    kind: str,
    shared: SharedInput | None,
    last: bool,
) -> torch.Tensor:
    packed = operators.fields(layer_of(weight))
    if shared is None:
        return operators.rotate_and_multiply(x, *packed, bias, kind)
    rotated = shared.rotate(x, last, lambda x: EightBit(*operators.rotate_rows(x, kind)))
    return operators.fast_linear(*rotated, *packed, bias, kind, x.dtype)
