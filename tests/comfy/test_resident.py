"""Weights that dynamic VRAM holds on the card are taken past core's path; a stand-in plays the card and its pages."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest
import torch

CARD = torch.device("meta")


@pytest.fixture
def pages(monkeypatch, pack):
    """Pages with a serial number each: `pages.serial[allocation]`, None where there is no memory; and what is pinned."""
    from comfyui_hlwq.nodes import compat

    state = SimpleNamespace(serial={}, pinned=[])

    def fault(allocation):
        number = state.serial[allocation]
        if number is None:
            return None
        state.pinned.append(allocation)
        return (ctypes.c_uint32 * 1)(number)

    def unpin(allocation):
        if allocation is not None:
            state.pinned.remove(allocation)

    same = compat.model_vbar.vbar_signature_compare
    vbar = SimpleNamespace(vbar_fault=fault, vbar_unpin=unpin, vbar_signature_compare=same)
    for place in (compat, compat.dynamic_vram):
        monkeypatch.setattr(place, "model_vbar", vbar)
    return state


def layer(serial=None):
    module = torch.nn.Linear(4, 4)
    if serial is not None:
        module._v, module._v_weight, module._v_bias = "place", "weight on the card", "bias on the card"
        module._v_signature = (ctypes.c_uint32 * 1)(serial)
    return module


def test_resident_weights_are_given_and_held_until_released(pages):
    from comfyui_hlwq.nodes import compat

    pages.serial["place"] = 3
    weight, bias, held = compat.take_resident(layer(3), CARD)
    assert (weight, bias) == ("weight on the card", "bias on the card") and pages.pinned == ["place"]
    compat.release_resident(held)
    assert not pages.pinned


def test_pages_that_were_given_away_are_left_to_core(pages):
    from comfyui_hlwq.nodes import compat

    pages.serial["place"] = 4
    assert compat.take_resident(layer(3), CARD) is None and not pages.pinned
    pages.serial["place"] = None
    assert compat.take_resident(layer(3), CARD) is None and not pages.pinned


def test_blocks_that_core_prefetched_are_held_by_core(pages):
    from comfyui_hlwq.nodes import compat

    module = layer(3)
    module._prefetch = {"resident": True}
    weight, _, held = compat.take_resident(module, CARD)
    assert weight == "weight on the card" and held is None and not pages.pinned
    compat.release_resident(held)
    module._prefetch = {"resident": False}
    assert compat.take_resident(module, CARD) is None


def test_without_dynamic_vram_there_is_nothing_to_take(pages):
    from comfyui_hlwq.nodes import compat

    assert compat.take_resident(layer(), CARD) is None
    assert compat.take_resident(layer(3), torch.device("cpu")) is None
