"""Patches whose shapes are not their weight's, as of a LoRA for a model of another size: named in the log and left out.

Core tries them while it patches, and goes on without those that fail. Packed weights are patched as they are used, so here
core's own arithmetic is tried when a patch comes, on tensors without data.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from .. import compat
from .low_rank import is_plain

_log = logging.getLogger("hlwq")
Patch = tuple[Any, ...]


def fitting(model: torch.nn.Module, patches: Mapping[Any, Any], present: Mapping[str, list[Patch]]) -> dict[Any, Any]:
    """The patches, in ComfyUI's form (`key` or `(key, offset[, function])` → value), that fit the model's weights.

    Args:
        model: what is patched.
        patches: as `add_patches` gets them; keys of tensors that the model lacks stay, for core to name.
        present: patches that come before, by key: some widen their weight.
    """
    found, weights = {}, model.state_dict()
    for target, value in patches.items():
        key, offset, function = (target, None, None) if isinstance(target, str) else (*target, None)[:3]
        patch = (1.0, value, 1.0, offset, function)
        if key not in weights or (reason := _misfit(weights[key], key, patch, present)) is None:
            found[target] = value
        else:
            _log.warning("HLWQ: %s is left out of the patches, the rest is applied: %s", key, reason)
    return found


def _misfit(weight: torch.Tensor, key: str, patch: Patch, present: Mapping[str, list[Patch]]) -> str | None:
    """Why a patch cannot be applied to a weight; None if it can."""
    if is_plain(patch, weight.shape):
        return None
    before = [other for other in present.get(key, []) if not is_plain(other, weight.shape)]
    reason = _try([*before, patch], weight, key, torch.device("meta"))
    if reason is not None and "meta" in reason.lower():  # arithmetic that needs data
        reason = _try([*before, patch], weight, key, torch.device("cpu"))
    if reason is None:
        return None
    return f"{reason.rpartition(key)[2].strip()} (the weight is {list(weight.shape)})"


def _try(patches: list[Patch], weight: torch.Tensor, key: str, device: torch.device) -> str | None:
    stand_in = torch.zeros(weight.shape, dtype=torch.float32, device=device)
    said: list[str] = []
    for patch in patches:
        value = patch[1]
        other = _other_weight(value)
        if other is not None:
            there = list(other.shape)
            said = [] if there == list(stand_in.shape) else [f"the other model's weight is {there}"]
            continue
        try:
            with _heard() as said:
                stand_in = compat.calculate_weight([patch], stand_in, key)
        except Exception as error:
            said = [f"{type(error).__name__}: {error}"]
    return said[0] if said else None


def _other_weight(value: Any) -> torch.Tensor | None:
    """Another model's whole weight: of a merge, or of a hook that makes a LoRA of a model."""
    if isinstance(value, list):
        return value[0][0]
    if isinstance(value, tuple) and value and value[0] == "model_as_lora":
        return value[1][0]
    return None


@contextlib.contextmanager
def _heard() -> Iterator[list[str]]:
    """What core complains of in this thread, kept from the log: it tells of shapes that do not fit in no other way."""
    said: list[str] = []
    thread = threading.get_ident()

    def hear(record: logging.LogRecord) -> bool:
        if record.thread != thread:
            return True
        if record.levelno >= logging.WARNING:
            said.append(record.getMessage())
        return False

    root = logging.getLogger()
    root.addFilter(hear)
    try:
        yield said
    finally:
        root.removeFilter(hear)


def eject_misfits(model: torch.nn.Module) -> None:
    """The same for adapters that core's bypass nodes have put before the layers' own forward."""
    for name, module in model.named_modules():
        hook = getattr(module.__dict__.get("forward"), "__self__", None)
        if not isinstance(hook, compat.BypassForwardHook):
            continue
        if not hasattr(hook, "hlwq_misfit"):
            hook.hlwq_misfit = _bypass_misfit(module, hook.adapter)
            if hook.hlwq_misfit is not None:
                _log.warning("HLWQ: the bypass of %s is left out, the rest is applied: %s", name, hook.hlwq_misfit)
        if hook.hlwq_misfit is not None:
            hook.eject()


def _bypass_misfit(module: torch.nn.Module, adapter: Any) -> str | None:
    if not isinstance(module, torch.nn.Linear) or not isinstance(adapter, compat.WeightAdapterBase):
        return None
    tensors = [value for value in adapter.weights if isinstance(value, torch.Tensor)]
    x = torch.zeros(1, module.in_features, dtype=tensors[0].dtype, device=tensors[0].device)
    y = torch.zeros(1, module.out_features, dtype=x.dtype, device=x.device)
    try:
        made = copy.copy(adapter).bypass_forward(lambda x: y, x)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None if made.shape == y.shape else f"it makes {made.shape[-1]} values, the layer {y.shape[-1]}"
