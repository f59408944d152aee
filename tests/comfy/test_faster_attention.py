"""Fast mode's attention in a whole model: used where it computes what core's would, and out of the way elsewhere."""

from __future__ import annotations

import inspect

import pytest
import torch


@pytest.fixture
def attended(monkeypatch, pack):
    """The shapes that the faster attention was asked for; it takes the tiny model's."""
    from comfyui_hlwq.hlwq_core.running import attention

    seen = []
    original = attention.attend

    def attend(q, k, *rest):
        seen.append((tuple(q.shape), tuple(k.shape)))
        return original(q, k, *rest)

    monkeypatch.setattr(attention, "attend", attend)
    monkeypatch.setattr(attention, "MIN_PAIRS", 1)
    monkeypatch.setattr(attention, "HEAD_SIZES", range(1024))
    monkeypatch.setattr(attention, "fits", lambda q, k, heads, fits=attention.fits: fits(q.bfloat16(), k, heads))
    return seen


def test_a_model_samples_the_same_with_it(load, sample, distance, attended, monkeypatch):
    import comfy.ldm.modules.attention as core
    from comfyui_hlwq.nodes import compat
    from comfyui_hlwq.nodes.running import faster_attention

    # On a CPU core attends in pieces; on a GPU its choice is `attention_pytorch`.
    monkeypatch.setattr(compat, "attention_pytorch", inspect.unwrap(core.optimized_attention))

    model = load()[0]
    expected = sample(model, steps=1)
    assert not attended
    faster_attention.use(model)
    assert distance(sample(model, steps=1), expected) < 0.01
    assert attended, "no attention went this way"
    assert faster_attention.KEY in model.clone().model_options["transformer_options"]


def test_masks_and_other_attentions_are_left_alone(attended):
    from comfyui_hlwq.nodes import compat
    from comfyui_hlwq.nodes.running import faster_attention

    q = torch.randn(1, 16, 64)
    mask = torch.zeros(16, 16)
    calls = []

    def other(q, k, v, heads, *args, **options):
        calls.append(options)
        return q

    assert faster_attention.faster_attention(other, q, q, q, 2) is q and len(calls) == 1
    plain = compat.attention_pytorch
    for options in ({"mask": mask}, {"mask": None, "enable_gqa": True}):
        found = faster_attention.faster_attention(plain, q, q, q, 2, **options)
        assert torch.allclose(found, plain(q, q, q, 2), atol=1e-5)
    assert not attended
    found = faster_attention.faster_attention(plain, q, q, q, 2, mask=None)
    assert attended and torch.allclose(found, plain(q, q, q, 2), atol=1e-2)


def test_a_kernel_that_fails_gives_way_to_cores(attended, monkeypatch, caplog):
    from comfyui_hlwq.hlwq_core.running import attention
    from comfyui_hlwq.nodes import compat
    from comfyui_hlwq.nodes.running import faster_attention

    def fail(*parts):
        raise RuntimeError("no execution plan")

    def no_memory(*parts):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(faster_attention, "_refused", [])
    q = torch.randn(1, 16, 64)
    monkeypatch.setattr(attention, "attend", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        faster_attention.faster_attention(compat.attention_pytorch, q, q, q, 2)
    monkeypatch.setattr(attention, "attend", fail)
    for _ in range(2):
        found = faster_attention.faster_attention(compat.attention_pytorch, q, q, q, 2)
        assert torch.equal(found, compat.attention_pytorch(q, q, q, 2))
    assert caplog.text.count("no execution plan") == 1


def test_a_node_that_sets_its_own_attention_keeps_it(load):
    from comfyui_hlwq.nodes.running import faster_attention

    model = load()[0].clone()
    mine = object()
    model.model_options["transformer_options"][faster_attention.KEY] = mine
    faster_attention.use(model)
    assert model.model_options["transformer_options"][faster_attention.KEY] is mine
