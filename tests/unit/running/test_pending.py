"""Passes that are put off until a layer reads the activations."""

from __future__ import annotations

import weakref

import comfy_kitchen
import pytest
import torch

from hlwq_core.backends import activations, eager
from hlwq_core.running import fast, packed_tensor, pending
from hlwq_core.running.pending import Pending, PutOff

from ..backends.layers import layer, relative

COLUMNS = 256


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    monkeypatch.setattr(pending, "MIN_ROWS", 8)


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape))).bfloat16()


def block(x, scale, shift, gate, logits, context):
    """A block's passes as ComfyUI writes them; the layers take what stands for their input."""
    read = []
    normed = torch.nn.functional.rms_norm(x, (COLUMNS,))
    read.append(normed * (1 + scale) + shift)
    read.append(context * (1 + scale[:, :1]) + shift[:, :1])
    out = numbers(*x.shape).view(*x.shape[:2], 4, 64)
    read.append((out * (2.0 * torch.sigmoid(logits)).unsqueeze(-1)).view(x.shape))
    hidden = torch.nn.functional.gelu(numbers(*x.shape), approximate="tanh")
    read.append(torch.nn.functional.dropout(hidden, 0.0, True, False))
    x.add_(numbers(*x.shape) * gate)
    x.addcmul_(numbers(*x.shape), gate)
    return read


@pytest.mark.parametrize("groups", [1, 24])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_block_gives_the_same_in_fewer_passes(batch, groups):
    def arguments():
        x = numbers(batch, 24, COLUMNS)
        # As core has them: one of several values of a time step, a row apart.
        many = numbers(batch, groups, 3, COLUMNS)
        scale, shift, gate = many.unbind(dim=2)
        return x, scale, shift, gate, numbers(batch, 24, 4), numbers(batch, 16, COLUMNS)

    with torch.inference_mode():
        given = arguments()
        expected = block(*given)
        added = given[0].clone()
        given = arguments()
        calls = []

        def add_product(x, other, factor):
            calls.append(factor.shape)
            activations.add_product(x, other, factor)

        with PutOff(add_product):
            found = block(*given)
            tensors = [part.tensor() for part in found]
    assert all(isinstance(part, Pending) for part in found), "a pass was not put off"
    assert len(calls) == 2 and relative(given[0], added) < 4e-3
    for part, tensor, whole in zip(found, tensors, expected, strict=True):
        assert part.shape == tensor.shape == whole.shape and part.dtype is whole.dtype
        assert torch.equal(tensor, whole), "what was put off is not what the block would have made"


def test_a_layer_does_what_was_put_off_and_leaves_the_input_for_others():
    weight = packed_tensor.quantized_tensor(layer(64, COLUMNS))
    with torch.inference_mode(), PutOff(activations.add_product):
        x, scale, shift = numbers(1, 24, COLUMNS), numbers(1, 1, COLUMNS), numbers(1, 1, COLUMNS)
        modulated = x * (1 + scale) + shift
        found = fast.linear(modulated, weight, None, "fp8", dense=True)
        assert modulated._tensor is not None, "its input is made once more for the gates"
        source = weakref.ref(x)
        kept, x = x.clone(), None
        assert source() is None, "what the input was made of takes memory as long as the input"
        whole = modulated.tensor()
        again = fast.linear(modulated, weight, None, "fp8")
    assert relative(again, found) < 0.02
    expected = kept.float() * (1 + scale).float() + shift.float()
    assert relative(whole, expected) < 4e-3
    exact = whole.float() @ eager.decode(layer(64, COLUMNS), torch.float32).t()
    assert found.shape == (1, 24, 64) and relative(found, exact) < 0.05


@pytest.mark.parametrize(
    "use",
    [
        lambda x: torch.cat([x, x]), lambda x: x.float(), lambda x: x - 1, lambda x: 2 * x, lambda x: x[0], lambda x: x.chunk(2, -1)[0],
        lambda x: torch.stack((x,)), lambda x: x + x, lambda x: x.reshape(-1), lambda x: x.to(torch.float32).sum(), lambda x: -x,
        lambda x: torch.nn.functional.linear(x, torch.ones(3, COLUMNS).bfloat16()), lambda x: x.clone().mul_(3), lambda x: x @ x.mT,
        lambda x: torch.nn.functional.dropout(x, 0.0, False), lambda x: torch.nn.functional.pad(x, (1, 1)), lambda x: x.view(24, 2, 128),
        lambda x: torch.nn.functional.rms_norm(x, (COLUMNS,)), lambda x: torch.add(x, x, alpha=2), lambda x: x * x, lambda x: x / 3,
    ],
)  # fmt: skip
@pytest.mark.parametrize("inside", [True, False], ids=["while passes are put off", "later"])
def test_whatever_else_touches_it_gets_the_tensor(use, inside):
    with torch.inference_mode():
        x, scale, shift = numbers(1, 24, COLUMNS), numbers(1, 1, COLUMNS), numbers(1, 1, COLUMNS)
        expected = use(x * (1 + scale) + shift), use(x * scale)
        with PutOff(activations.add_product):
            for put_off, whole in zip((x * (1 + scale) + shift, x * scale), expected, strict=True):
                assert isinstance(put_off, Pending)
                if inside:
                    assert torch.equal(pending.made(use(put_off)), whole)
        assert torch.equal(pending.made(use(put_off)), expected[1])


@pytest.mark.parametrize("put_off", [True, False], ids=["norm put off", "no norm put off"])
def test_queries_are_normed_as_they_are_roped(put_off):
    calls = []

    def norm_rope(*arguments):
        calls.append(arguments)
        return activations.norm_rope(*arguments)

    def attention(q, k, weight, turns):
        q, k = (torch.nn.functional.rms_norm(part, weight.shape, weight=weight, eps=1e-5) for part in (q, k))
        kept = q.shape, k.shape
        q, k = (part.reshape(part.shape[0], part.shape[1], turns.shape[2], -1) for part in (q, k))
        q, k = comfy_kitchen.apply_rope_split_half(q, k, turns)
        alone = torch.nn.functional.rms_norm(k.reshape(kept[1]), weight.shape, weight=weight, eps=1e-5)
        one = comfy_kitchen.apply_rope_split_half1(alone.reshape(k.shape), turns)
        return q.reshape(kept[0]), k.reshape(kept[1]), one.reshape(kept[1])

    with torch.inference_mode():
        given = numbers(2, 24, COLUMNS), 3 * numbers(2, 24, COLUMNS), numbers(COLUMNS), numbers(1, 24, 4, 32, 2, 2)
        expected = attention(*given)
        weight = given[2].clone()
        with PutOff(activations.add_product, norm_rope if put_off else None):
            found = attention(*given)
            last = torch.nn.functional.rms_norm(given[0], weight.shape, weight=weight, eps=1e-5)
            weight.zero_()
    assert len(calls) == 3 * put_off
    for part, whole in zip(found, expected, strict=True):
        assert type(part) is torch.Tensor and relative(part, whole) < 8e-3
    whole = torch.nn.functional.rms_norm(given[0], weight.shape, weight=given[2], eps=1e-5)
    assert torch.equal(pending.made(last), whole), "the weight may have gone since"


def test_what_is_no_modulation_runs_as_ever():
    with torch.inference_mode(), PutOff(activations.add_product):
        x = numbers(1, 24, COLUMNS)
        for other in (
            numbers(1, 24, 1), numbers(COLUMNS), numbers(1, 1, COLUMNS).float(), torch.tensor(2.0), 3, numbers(1, 12, COLUMNS)[:, :1, ::2].repeat(1, 1, 2)[..., :1],
        ):  # fmt: skip
            assert type(x * other) is torch.Tensor
        assert type(numbers(1, 4, COLUMNS) * numbers(1, 1, COLUMNS)) is torch.Tensor, "too few rows"
        assert type(torch.nn.functional.gelu(x)) is torch.Tensor
        assert isinstance(torch.mul(x, numbers(1, 1, COLUMNS)), Pending)
        assert type(torch.mul(x, numbers(1, 1, COLUMNS), out=torch.empty_like(x))) is torch.Tensor
    with PutOff(activations.add_product), torch.enable_grad():
        assert type(numbers(1, 24, COLUMNS) * numbers(1, 1, COLUMNS)) is torch.Tensor
