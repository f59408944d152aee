"""The operators that compiled code sees."""

from __future__ import annotations

import torch

from hlwq_core.backends import eager
from hlwq_core.running import operators

from ..backends.layers import activations, layer


def test_decoding_compiles_without_a_graph_break():
    packed = layer(8, 200)
    fields = operators.fields(packed)

    def double(codes, norms):
        return operators.decode(codes, norms, *fields[2:], torch.float32, "eager") * 2

    compiled = torch.compile(double, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*fields[:2]), double(*fields[:2]))
    assert torch.equal(double(*fields[:2]), eager.decode(packed, torch.float32) * 2)


def test_they_pass_torchs_own_checks():
    kind = "int8"  # torch's checks multiply what they are given, and it has no product of float8 on a CPU
    packed = operators.fields(layer(16, 200))
    x, bias = activations(21, 200).view(3, 7, 200), torch.randn(16).bfloat16()
    rotated = operators.rotate_rows(x, kind)
    for operator, arguments in (
        (operators.decode, (*packed, torch.bfloat16, "eager")),
        (operators.rotate_rows, (x, kind)),
        (operators.fast_linear, (*rotated, *packed, bias, kind, torch.bfloat16)),
        (operators.rotate_and_multiply, (x, *packed, bias, kind)),
    ):
        torch.library.opcheck(operator, arguments)
