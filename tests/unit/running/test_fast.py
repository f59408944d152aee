"""Fast mode while a model samples."""

from __future__ import annotations

import pytest
import torch

from hlwq_core.backends import eager
from hlwq_core.backends.eight_bit import KINDS
from hlwq_core.running import fast, packed_tensor, scratch

from ..backends.layers import activations, layer, relative


def test_layers_in_turn_share_one_rotation():
    made = []

    def make(x):
        made.append(x)
        return x, x

    shared = fast.SharedInput()
    x, context = torch.ones(2), torch.ones(2)
    for tensor, last in ((x, False), (x, False), (x, True)):
        shared.rotate(tensor, last, make)
    assert len(made) == 1
    for tensor, last in ((x, False), (context, False), (context, True)):
        shared.rotate(tensor, last, make)
    assert [id(tensor) for tensor in made[1:]] == [id(x), id(context)]
    assert shared._input is None and shared._rotated is None, "an input is kept beyond its use"


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_of_a_packed_tensor(kind):
    packed, x = layer(64, 456), activations(40, 456)
    weight, bias = packed_tensor.quantized_tensor(packed), torch.randn(64).bfloat16()
    exact = x.float() @ eager.decode(packed, torch.float32).t() + bias.float()
    with torch.inference_mode():
        found = fast.linear(x.view(2, 20, 456), weight, bias, kind)
    assert found.shape == (2, 20, 64) and relative(found.view(40, 64), exact) < 0.045
    assert scratch.nbytes(torch.device("cpu")) > 0
    scratch.release()
    assert scratch.nbytes(torch.device("cpu")) == 0
