"""Fast mode's definition: rotated activations and 8-bit weights give what exact decoding gives, but for a small error of 8 bits."""

from __future__ import annotations

import pytest
import torch

from hlwq_core.backends import eager, eight_bit
from hlwq_core.backends.eight_bit import KINDS

from .layers import activations, layer, relative


@pytest.mark.parametrize("kind, allowed", [("fp8", 0.045), ("int8", 0.02)])
@pytest.mark.parametrize("columns", [512, 456])
def test_a_linear_layer_in_8_bits(kind, allowed, columns):
    packed = layer(64, columns)
    x, bias = activations(40, columns), torch.randn(64).bfloat16()
    exact = x.float() @ eager.decode(packed, torch.float32).t() + bias.float()
    with torch.inference_mode():
        weight = eight_bit.weight(packed, kind)
        found = eight_bit.multiply(eight_bit.rotate(x, kind), weight, bias, torch.bfloat16)
    assert weight.values.dtype is eight_bit.DTYPES[kind] and found.dtype is torch.bfloat16
    assert relative(found, exact) < allowed


def test_zero_rows_and_zero_activations():
    packed = layer(16, 256)
    packed.norms[3] = 0
    x = activations(32, 256)
    x[5] = 0
    for kind in KINDS:
        weight = eight_bit.weight(packed, kind)
        found = eight_bit.multiply(eight_bit.rotate(x, kind), weight, None, torch.bfloat16)
        assert torch.isfinite(found).all() and not found[5].any() and not found[:, 3].any()
