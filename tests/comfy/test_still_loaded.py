"""A load that has nothing to do is left out, and every load that has something to do is not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

CARD = torch.device("cuda", 0)


class Reservation:
    def __init__(self):
        self.first = 0

    def prioritize(self):
        self.first += 1


def patcher(model=None, **changes):
    """What still_loaded looks at, as ComfyUI's dynamic patcher has it."""
    if model is None:
        pins = {CARD: {"failed": True, "active": False}}
        model = SimpleNamespace(device=CARD, dynamic_pins=pins)
    usual = {
        "patches": {}, "patches_uuid": "a", "object_patches": {}, "weight_wrapper_patches": {}, "injections": {},
        "hook_patches": {}, "forced_hooks": None, "callbacks": {"on_load_after": {"hlwq": [print]}}, "load_device": CARD,
    }  # fmt: skip
    return SimpleNamespace(model=model, **(usual | changes))


def sampling() -> torch.nn.Module:
    return torch.nn.Identity()


def test_the_same_again_has_nothing_to_do(pack):
    from comfyui_hlwq.nodes.running import still_loaded

    kept = {"model_sampling": sampling()}
    first = patcher(object_patches=kept, patches={"weight": []})
    assert not still_loaded.is_loaded(first)
    still_loaded.note(first)
    clone = patcher(first.model, object_patches=dict(kept), patches={"weight": []})
    assert still_loaded.is_loaded(first) and still_loaded.is_loaded(clone)
    still_loaded.forget(first)
    assert not still_loaded.is_loaded(first) and not still_loaded.is_loaded(clone)


CHANGES = {
    "other patches": {"patches_uuid": "b"},
    "another object in the model": {"object_patches": {"model_sampling": sampling()}},
    "one object more": {"object_patches": {"model_sampling": sampling(), "diffusion_model.forward": print}},
    "another device": {"load_device": torch.device("cuda", 1)},
    "functions of weights": {"weight_wrapper_patches": {"weight": [print]}},
    "what is injected": {"injections": {"bypass": [print]}},
    "hooks": {"hook_patches": {"hook": {}, "other": {}}},
    "forced hooks": {"forced_hooks": [print]},
    "another pack's callback": {"callbacks": {"on_load_after": {"hlwq": [print], "other": [print]}}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_load_depends_on_is_compared(pack, change):
    from comfyui_hlwq.nodes.running import still_loaded

    first = patcher(object_patches={"model_sampling": (kept := sampling())})
    still_loaded.note(first)
    changed = patcher(first.model, **({"object_patches": {"model_sampling": kept}} | CHANGES[change]))
    assert still_loaded.is_loaded(first) and not still_loaded.is_loaded(changed)
    still_loaded.note(changed)
    assert not still_loaded.is_loaded(first)


def test_nothing_is_kept_alive_and_no_address_is_taken_for_another(pack):
    from comfyui_hlwq.nodes.running import still_loaded

    first = patcher(object_patches={"model_sampling": sampling()})
    still_loaded.note(first)
    first.object_patches.clear()
    assert first.model.hlwq_loaded[1][0]() is None
    first.object_patches["model_sampling"] = sampling()
    assert not still_loaded.is_loaded(first)


def test_a_model_that_left_the_card_is_loaded(pack):
    from comfyui_hlwq.nodes.running import still_loaded

    first = patcher()
    still_loaded.note(first)
    first.model.device = torch.device("cpu")
    assert not still_loaded.is_loaded(first)


@pytest.fixture
def dynamic(load, monkeypatch):
    """The tiny model's patcher as under dynamic VRAM, and what it did, in order; core's part is a stand-in."""
    from comfyui_hlwq.nodes import compat
    from comfyui_hlwq.nodes.running import first_load, patchers

    did, reservation = [], Reservation()
    made = load()[0].clone()
    made.__class__ = patchers.PackedPatcherDynamic
    made.load_device = made.model.device = CARD
    made.model.__dict__["dynamic_pins"] = {CARD: {"failed": True, "active": False}}

    def core_load(self, *args, **kwargs):
        self.restore_loaded_backups()
        did.append("load")

    base = compat.ModelPatcherDynamic
    monkeypatch.setattr(base, "load", core_load)
    monkeypatch.setattr(base, "restore_loaded_backups", lambda self: did.append("restore") or 0)
    monkeypatch.setattr(base, "partially_unload", lambda self, *args: self.restore_loaded_backups())
    monkeypatch.setattr(base, "_vbar_get", lambda self, create=False: reservation)
    monkeypatch.setattr(base, "__del__", lambda self: None)
    monkeypatch.setattr(first_load, "load", lambda *args: did.append("first"))
    yield made, did, reservation
    made.__class__ = patchers.PackedPatcher
    made.load_device = made.model.device = torch.device("cpu")


def test_a_second_load_only_takes_its_place_in_line(dynamic):
    made, did, reservation = dynamic
    made.load(CARD)
    assert did == ["restore", "load", "first"]
    made.load(CARD)
    assert did == ["restore", "load", "first"] and reservation.first == 1
    assert made.model.dynamic_pins[CARD] == {"failed": False, "active": True}


def test_what_comfyui_took_back_is_loaded_again(dynamic):
    made, did, _ = dynamic
    made.load(CARD)
    made.partially_unload(torch.device("cpu"), 1e32)
    did.clear()
    made.load(CARD)
    assert "load" in did


def test_a_load_that_failed_is_done_again(dynamic, monkeypatch):
    from comfyui_hlwq.nodes.running import first_load

    made, did, _ = dynamic

    def fail(*args):
        raise RuntimeError("no room")

    monkeypatch.setattr(first_load, "load", fail)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no room"):
            made.load(CARD)
    assert did.count("load") == 2


def test_a_lora_is_loaded(dynamic):
    made, did, _ = dynamic
    made.load(CARD)
    patched = made.clone()
    patched.patches_uuid = "another"
    did.clear()
    patched.load(CARD)
    assert "load" in did


def test_what_core_calls_dirty_is_loaded(dynamic):
    made, did, _ = dynamic
    made.load(CARD)
    did.clear()
    made.load(CARD, dirty=True)
    assert "load" in did
