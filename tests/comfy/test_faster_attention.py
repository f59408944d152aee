"""The attention that the loader was asked for, in a whole model: used where it computes what core's would, and out of the way elsewhere."""

from __future__ import annotations

import inspect
import types

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
    faster_attention.use(model, faster_attention.faster_attention)
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

    monkeypatch.setattr(faster_attention, "_refused", {})
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
    faster_attention.use(model, faster_attention.faster_attention)
    assert model.model_options["transformer_options"][faster_attention.KEY] is mine


CPU = torch.device("cpu")


def test_what_cannot_be_had_is_said_and_left_to_comfyui(load):
    from comfyui_hlwq.nodes.running import faster_attention

    for name in faster_attention.NAMES:
        found = faster_attention.choose(name, CPU)
        assert found.override is None and found.words.startswith("as ComfyUI has it")
        assert (name == "comfyui") is (":" not in found.words), found.words
        model, _, _, report = load(attention=name)
        assert f"weights exact, attention {found.words}" in report
        assert faster_attention.KEY not in model.model_options["transformer_options"]


@pytest.fixture
def kernels(monkeypatch, pack):
    """Stand-ins for what a card has: every choice is to be had, and tells that it was called."""
    from comfyui_hlwq.hlwq_core.running import attention
    from comfyui_hlwq.nodes import compat
    from comfyui_hlwq.nodes.running import faster_attention

    called = []
    plain = compat.attention_pytorch

    def kernel(name):
        return lambda q, k, v, heads, *args, **options: called.append(name) or plain(q, k, v, heads)

    monkeypatch.setattr(compat, "attention_function", kernel)
    monkeypatch.setattr(attention, "attend", kernel("cudnn"))
    monkeypatch.setattr(attention, "unavailable_reason", lambda device: None)
    monkeypatch.setattr(attention, "MIN_PAIRS", 1)
    monkeypatch.setattr(attention, "HEAD_SIZES", (32, 64))
    monkeypatch.setattr(faster_attention, "_refused", {})
    faster_attention._unavailable_reason.cache_clear()
    yield called
    faster_attention._unavailable_reason.cache_clear()


def queries():
    return torch.randn(1, 16, 64).bfloat16()


KERNELS = {"auto": "cudnn", "cudnn": "cudnn", "comfy_kitchen": "comfy_kitchen_int8", "sage": "sage"}


@pytest.mark.parametrize("name", KERNELS)
def test_the_chosen_kernel_attends(kernels, name):
    from comfyui_hlwq.nodes import compat
    from comfyui_hlwq.nodes.running import faster_attention

    override = faster_attention.choose(name, CPU).override
    kernels.clear()
    q = queries()
    override(compat.attention_pytorch, q, q, q, 2, mask=None, scale=None)
    assert kernels == [KERNELS[name]] and faster_attention.is_known(override)


@pytest.mark.parametrize("name", KERNELS)
def test_only_auto_gives_way_to_the_attention_of_the_command_line(kernels, name):
    """--use-sage-attention speaks for all models, the loader for one."""
    from comfyui_hlwq.nodes.running import faster_attention

    override, mine, q = faster_attention.choose(name, CPU).override, [], queries()
    kernels.clear()
    override(lambda *args, **options: mine.append(1), q, q, q, 2)
    assert (mine, kernels) == (([1], []) if name == "auto" else ([], [KERNELS[name]]))


@pytest.mark.parametrize("name", ["comfy_kitchen", "sage"])
def test_a_kernel_that_computes_something_else_is_not_used(kernels, monkeypatch, name):
    from comfyui_hlwq.nodes import compat
    from comfyui_hlwq.nodes.running import faster_attention

    monkeypatch.setattr(compat, "attention_function", lambda key: lambda q, k, v, heads: q)
    found = faster_attention.choose(name, CPU)
    assert found.override is None and "differs from its definition" in found.words


def test_it_can_be_turned_off_in_an_emergency(kernels, monkeypatch):
    from comfyui_hlwq.nodes.running import faster_attention

    monkeypatch.setenv(faster_attention.SWITCH, "0")
    assert all(faster_attention.choose(name, CPU).override is None for name in faster_attention.NAMES)


def as_core_sets_it(attends):
    """What ModelPatcher.set_model_optimized_attention makes of an attention, in ComfyUI 0.33 and later."""
    optimized_attention = attends

    def override(_, *args, **options):
        return optimized_attention(*args, **options)

    return types.FunctionType(override.__code__, {"__name__": "comfy.model_patcher"}, closure=override.__closure__)


def test_cores_own_attention_node_is_known_and_another_packs_is_not(pack):
    """Blocks are recorded with the one, not with the other: what it does besides attending, nobody knows."""
    import comfy.ldm.modules.attention as core
    from comfyui_hlwq.nodes.running import faster_attention

    def of_another_pack(q, k, v, heads, **options):
        return q

    assert faster_attention.is_known(as_core_sets_it(core.attention_pytorch))
    for foreign in (of_another_pack, core.wrap_attn(of_another_pack)):
        assert not faster_attention.is_known(foreign) and not faster_attention.is_known(as_core_sets_it(foreign))
