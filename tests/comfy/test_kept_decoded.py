"""Decoded weights kept in spare memory: used again, given back on demand, never stale. A stand-in lends the memory."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest
import torch

NAME = "diffusion_model.transformer_blocks.0.attn1.to_q"


class Arena:
    """ComfyUI's reservation of video memory, in plain memory: pages with serial numbers, a watermark, a place in line."""

    def __init__(self, size, device):
        self.memory = torch.zeros(size, dtype=torch.uint8)
        self.end, self.watermark, self.serial = 0, size, 0
        self.log = []

    def alloc(self, size):
        start = self.end = (self.end + 511) // 512 * 512
        self.end += size
        return self, start, size

    def prioritize(self):
        self.watermark = len(self.memory)
        self.log.append("first")

    def deprioritize(self):
        self.log.append("last")

    def free_memory(self, size):
        """What lies above the watermark is lost."""
        freed = min(int(size), self.watermark)
        self.watermark -= freed
        self.memory[self.watermark :] = 255
        self.serial += 1
        return freed


@pytest.fixture
def lent(monkeypatch, pack):
    from comfyui_hlwq.nodes import compat

    pins = []

    def fault(allocation):
        arena, start, size = allocation
        if start + size > arena.watermark:
            return None
        pins.append(allocation)
        return (ctypes.c_uint32 * 1)(arena.serial)

    vbar = SimpleNamespace(ModelVBAR=Arena, vbar_fault=fault, vbar_unpin=lambda allocation: pins.remove(allocation))
    for place in (compat, compat.dynamic_vram):
        monkeypatch.setattr(place, "model_vbar", vbar)
        monkeypatch.setattr(place, "aimdo_to_tensor", lambda a, device: a[0].memory[a[1] : a[1] + a[2]])
    yield pins
    assert not pins, "memory was not given free after use"


@pytest.fixture
def decodes(monkeypatch, pack):
    """The layers that were decoded, in order."""
    from comfyui_hlwq.hlwq_core.running import decoders

    seen = []
    original = decoders.ScratchDecoder.__call__

    def call(self, low_rank=None, out=None):
        seen.append(self.shape)
        return original(self, low_rank, out)

    monkeypatch.setattr(decoders.ScratchDecoder, "__call__", call)
    return seen


def block(model):
    return model.model.diffusion_model.transformer_blocks[0]


def lend(model):
    """Lend every packed layer a place; the arena."""
    from comfyui_hlwq.nodes.running import kept_decoded, patchers

    device = torch.device("cpu")
    kept_decoded.lend_places(model.model, [module for _, module in patchers.packed_modules(model)], device)
    return model.model.hlwq_reservations[device]


def test_the_second_use_needs_no_decoding(load, lent, decodes):
    from comfyui_hlwq.nodes.running import kept_decoded, patchers

    model = load()[0]
    modules = [module for _, module in patchers.packed_modules(model)]
    attention = block(model).attn1
    x = torch.randn(1, 5, attention.to_q.in_features).bfloat16()
    with torch.inference_mode():
        expected = attention(x)
        del decodes[:]
        kept_decoded.lend_places(model.model, modules, torch.device("cpu"))
        assert torch.equal(attention(x), expected) and len(decodes) == 4
        assert torch.equal(attention(x), expected) and len(decodes) == 4
        # Float32 is not kept, and is right all the same.
        assert torch.allclose(attention(x.float()).bfloat16().float(), expected.float(), atol=5e-2)


@pytest.mark.parametrize("fast", [False, True])
def test_a_place_is_filled_in_inference_mode_and_outside(load, lent, fast):
    """A node samples in it; ComfyUI's MultiGPU CFG Split does so in threads outside of it, with the same places."""
    from comfyui_hlwq.nodes.running import as_chosen

    model = load()[0]
    if fast:
        as_chosen.make_fast(model.model, "int8")
    try:
        arena = lend(model)
        attention = block(model).attn1
        x = torch.randn(1, 64, attention.to_q.in_features).bfloat16()
        with torch.inference_mode():
            expected = attention(x)
        for inside in (False, True, False):
            arena.serial += 1  # it was taken and lent again
            with torch.inference_mode(inside), torch.no_grad():
                assert torch.equal(attention(x), expected)
    finally:
        as_chosen.make_exact(model.model)


def test_a_place_is_given_free_where_decoding_fails(load, lent, monkeypatch):
    from comfyui_hlwq.hlwq_core.running import decoders

    model = load()[0]
    arena = lend(model)
    layer = block(model).attn1.to_q
    x = torch.randn(1, 5, layer.in_features).bfloat16()
    with torch.inference_mode():
        expected = layer(x)

        def fails(self, low_rank=None, out=None):
            raise torch.OutOfMemoryError("no room for the LoRA")

        arena.serial += 1
        with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
            patch.setattr(decoders.ScratchDecoder, "__call__", fails)
            layer(x)
        assert not lent
        assert torch.equal(layer(x), expected)


def test_memory_that_was_taken_is_decoded_without(load, lent, decodes):
    from comfyui_hlwq.nodes.running import kept_decoded, patchers

    model = load()[0]
    modules = [module for _, module in patchers.packed_modules(model)]
    device = torch.device("cpu")
    kept_decoded.lend_places(model.model, modules, device)
    arena = model.model.hlwq_reservations[device]
    attention = block(model).attn1
    x = torch.randn(1, 5, attention.to_q.in_features).bfloat16()
    with torch.inference_mode():
        expected = attention(x)
        assert kept_decoded.give_back(model.model, device, 1e30) == len(arena.memory)
        del decodes[:]
        assert torch.equal(attention(x), expected) and len(decodes) == 4
        assert torch.equal(attention(x), expected) and len(decodes) == 8
        # The next load lends it again, behind all models.
        kept_decoded.lend_places(model.model, modules, device)
        assert arena.log[-2:] == ["first", "last"]
        assert torch.equal(attention(x), expected) and torch.equal(attention(x), expected)
        assert len(decodes) == 12


def test_eight_bit_weights_are_kept_too(load, lent, monkeypatch):
    from comfyui_hlwq.hlwq_core.running import decoders, fast
    from comfyui_hlwq.nodes.running import as_chosen, kept_decoded, patchers

    made = []
    original = decoders.EightBitDecoder.__call__
    monkeypatch.setattr(
        decoders.EightBitDecoder,
        "__call__",
        lambda self, out=None: (made.append(self.rows), original(self, out))[1],
    )
    monkeypatch.setattr(fast, "MIN_ROWS", 8)
    model = load()[0]
    as_chosen.make_fast(model.model, "fp8")
    device = torch.device("cpu")
    modules = [module for _, module in patchers.packed_modules(model)]
    attention = block(model).attn1
    x = torch.randn(1, 16, attention.to_q.in_features).bfloat16()
    with torch.inference_mode():
        expected = attention(x)
        few = attention(x[:, :4])
        kept_decoded.lend_places(model.model, modules, device)
        del made[:]
        assert torch.equal(attention(x), expected) and torch.equal(attention(x), expected) and len(made) == 4
        # Few rows are multiplied exactly, with the same places; then in 8 bits again.
        assert torch.equal(attention(x[:, :4]), few)
        assert torch.equal(attention(x), expected) and len(made) == 8
        kept_decoded.give_back(model.model, device, 1e30)
        assert torch.equal(attention(x), expected) and len(made) == 12


def test_a_lora_is_kept_with_the_weight_and_leaves_with_it(load, lent, decodes):
    from comfyui_hlwq.nodes.running import kept_decoded, patchers
    from comfyui_hlwq.nodes.running.low_rank import LowRank

    model = load()[0]
    module = block(model).attn1.to_q
    kept_decoded.lend_places(model.model, [module for _, module in patchers.packed_modules(model)], torch.device("cpu"))
    x = torch.randn(1, 5, module.in_features).bfloat16()
    up, down = torch.randn(module.out_features, 2), torch.randn(2, module.in_features)
    patch = (0.1, SimpleNamespace(weights=(up, down, None, None, None, None)), 1.0, None, None)
    with torch.inference_mode():
        plain = module(x)
        module.low_rank = LowRank([patch], torch.bfloat16, torch.device("cpu"))
        patched = module(x)
        del decodes[:]
        assert torch.equal(module(x), patched) and not decodes
        assert not torch.allclose(patched, plain, atol=0.1)
        module.low_rank = None
        assert torch.equal(module(x), plain) and len(decodes) == 1


def test_no_memory_lent_is_no_error(load, lent, monkeypatch, caplog):
    from comfyui_hlwq.nodes import compat
    from comfyui_hlwq.nodes.running import kept_decoded, patchers

    def refuse(size, device):
        raise MemoryError("VBAR allocation failed")

    monkeypatch.setattr(compat.model_vbar, "ModelVBAR", refuse)
    model = load()[0]
    modules = [module for _, module in patchers.packed_modules(model)]
    kept_decoded.lend_places(model.model, modules, torch.device("cpu"))
    assert "VBAR allocation failed" in caplog.text
    assert all(module.place is None for module in modules)
    assert kept_decoded.give_back(model.model, torch.device("cpu"), 1) == 0


def test_only_where_somebody_can_take_it_back(load, monkeypatch, pack):
    from comfyui_hlwq.nodes.running import kept_decoded

    monkeypatch.delenv(kept_decoded.SWITCH, raising=False)
    model = load()[0].model
    assert kept_decoded.wanted(model) and not kept_decoded.wanted(load(keep_decoded=False)[0].model)
    monkeypatch.setenv(kept_decoded.SWITCH, "0")
    assert not kept_decoded.wanted(model)
    monkeypatch.delenv(kept_decoded.SWITCH)
    # Without dynamic VRAM there is nobody who could take the memory back: nothing is kept.
    import comfy.model_management

    model = load()[0]
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    assert "hlwq_reservations" not in model.model.__dict__
    comfy.model_management.unload_all_models()
