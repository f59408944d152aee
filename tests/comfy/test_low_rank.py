"""LoRAs of a packed weight as two thin matrices: joined once, with rows that the vendors' products are fast for."""

from __future__ import annotations

import pytest
import torch

from .test_lora import dynamic, effective, exact, linear, lora_on, no_vbar, with_lora  # noqa: F401  a fixture


def test_factors_are_joined_once(load, pack, no_vbar):  # noqa: F811
    """A load with the same patches, as each run begins with, keeps them; with others it makes new ones."""
    model = dynamic(load()[0], pack)
    tensors, _ = lora_on(model)
    device = torch.device("cpu")
    patched = with_lora(model, tensors)
    patched.load(device)
    first = linear(patched).low_rank
    patched.load(device)
    again = patched.clone()
    again.load(device)
    assert linear(patched).low_rank is first
    stronger = with_lora(model, tensors, 2.0)
    stronger.load(device)
    second = linear(stronger).low_rank
    assert second is not first and torch.allclose(second.up.float(), 2 * first.up.float())
    model.load(device)
    assert linear(model).low_rank is None


@pytest.mark.parametrize("ranks, whole", [((7,), 16), ((16,), 16), ((9, 111), 128), ((1, 2, 14), 32)])
def test_factors_of_any_rank_have_rows_that_the_vendors_products_are_fast_for(load, pack, no_vbar, ranks, whole):  # noqa: F811
    """Files whose rank differs by layer have 111 here and 87 there; zeros fill them up, and change nothing."""
    model = dynamic(load()[0], pack)
    base, deltas, patched = exact(model), [], model
    for seed, rank in enumerate(ranks):
        tensors, delta = lora_on(model, seed=seed, rank=rank)
        patched = with_lora(patched, tensors)
        deltas.append(delta)
    patched.load(torch.device("cpu"))
    low_rank = linear(patched).low_rank
    assert low_rank.up.shape[1] == low_rank.down.shape[0] == whole
    assert low_rank.up.is_contiguous() and low_rank.down.is_contiguous()
    found = effective(patched) - base
    assert float((found - sum(deltas)).norm() / sum(deltas).norm()) < 0.15  # bfloat16's rounding of the whole weight
    assert torch.allclose(low_rank.delta(torch.device("cpu")), sum(deltas), atol=0.02 * float(sum(deltas).abs().max()))
