"""A model that is on the card as the last sampling run left it: ComfyUI's dynamic patcher goes through all of its layers again
before each run, which takes a third of a second for LTX-2.3, and copies small weights to new places.

What a load depends on is noted after it. While that is the same and ComfyUI took nothing back, a load has nothing to do.
"""

from __future__ import annotations

import weakref
from typing import Any

from .. import compat


def _conditions(patcher: Any) -> tuple | None:
    """What a load of this patcher depends on, but for the objects that it puts in the model; None where something acts anew
    at each load."""
    foreign = [
        callback
        for key, callbacks in patcher.callbacks.get(compat.CallbacksMP.ON_LOAD, {}).items()
        for callback in callbacks
        if key != "hlwq"
    ]
    if any((patcher.weight_wrapper_patches, patcher.injections, patcher.hook_patches, patcher.forced_hooks, foreign)):
        return None
    return patcher.load_device, patcher.patches_uuid, tuple(patcher.patches), tuple(patcher.object_patches)


def _reference(value: Any) -> Any:
    """To compare with: it must not keep a model alive, and the address alone may become another object's."""
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: value


def note(patcher: Any) -> None:
    """After a load."""
    conditions = _conditions(patcher)
    replaced = [_reference(value) for value in patcher.object_patches.values()]
    patcher.model.hlwq_loaded = None if conditions is None else (conditions, replaced)


def forget(patcher: Any) -> None:
    """Before a load, and where ComfyUI takes weights back."""
    patcher.model.hlwq_loaded = None


def is_loaded(patcher: Any) -> bool:
    """Whether the last load of the patcher's model, by whichever of its clones, was one like this, and still stands."""
    noted = patcher.model.__dict__.get("hlwq_loaded") if compat.works(compat.Feature.STILL_LOADED) else None
    if noted is None or noted[0] != _conditions(patcher) or patcher.model.device != patcher.load_device:
        return False
    return all(noted() is value for noted, value in zip(noted[1], patcher.object_patches.values(), strict=True))
