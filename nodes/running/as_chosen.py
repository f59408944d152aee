"""One model in memory, run as each of its patchers was chosen to: with another mode, attention or recording in the loader its weights
are neither read nor moved again.

What was chosen goes with a patcher and its clones. Before a load and before each sampling run the model is made to run like that;
where nothing changed there is nothing to do.
"""

from __future__ import annotations

import logging
import weakref
from dataclasses import replace
from typing import Any

import torch

from ...hlwq_core import backends
from ...hlwq_core.errors import UnsupportedError
from ...hlwq_core.running import fast, packed_tensor
from .. import compat
from . import choices, faster_attention, fewer_passes, recorded_blocks
from .choices import FAST, KEY, Choices
from .packed_ops import PackedOperations

# What two patchers of one model may have chosen differently: not what its weights are, nor where they are kept.
OF_A_RUN = ("mode", "attention", "record_blocks", "load_at_once")

# Which patcher's sampling run a model is in the middle of.
_RUNNING = "hlwq_running"

_log = logging.getLogger("hlwq")


def give(patcher: Any, chosen: Choices) -> None:
    """Let a patcher, and every clone of it, run its model as the user chose; warns of what the device cannot do. Recordings of
    another mode or attention go: their memory is not called for by itself."""
    device = compat.model_management.get_torch_device()
    if chosen.mode == FAST:
        kind, reason = backends.choose_fast(device)
        if kind is None:
            _log.warning("HLWQ: fast mode is not available here, decoding exactly: %s", reason)
    faster_attention.drop(patcher)
    faster_attention.use(patcher, faster_attention.choose(chosen.attention, device).override)
    patcher.attachments[KEY] = chosen
    before = patcher.model.__dict__.get(KEY)
    if before is not None and replace(before, load_at_once=chosen.load_at_once) != chosen:
        recorded_blocks.forget(patcher.model)
    apply(patcher)  # for whoever runs the model without ComfyUI's sampling


def begin_run(patcher: Any) -> None:
    """Before a sampling run.

    Raises:
        UnsupportedError: the model is in the middle of another patcher's run that needs it otherwise.
    """
    model = patcher.model
    running = _running(model)
    model.__dict__.pop(_RUNNING, None)
    if running is not None and running is not patcher and _runs(running) != _runs(patcher):
        raise UnsupportedError(
            "this node samples two models of one checkpoint together, which are one in memory",
            expected="both behind the same LoRA nodes, and of the same mode",
            found="others",
            fix="give each a loader of its own, with *keep decoded* on in one and off in the other: they are loaded apart then, in "
            "memory of their own. If there is only one, an earlier run did not end as it should: run again",
        )
    model.__dict__[_RUNNING] = weakref.ref(patcher)
    apply(patcher)


def end_run(patcher: Any) -> None:
    """After it."""
    if _running(patcher.model) is patcher:
        del patcher.model.__dict__[_RUNNING]


def before_load(patcher: Any) -> None:
    """Before ComfyUI loads a patcher: the model is to run like this, unless it is in the middle of another's run."""
    if _running(patcher.model) in (None, patcher):
        apply(patcher)


def _running(model: Any) -> Any:
    return model.__dict__.get(_RUNNING, lambda: None)()


def _runs(patcher: Any) -> tuple[Any, ...]:
    """What a patcher makes of the model itself that gives another picture; what each forward is given is its own."""
    return patcher.attachments.get(KEY, choices.DEFAULT).mode, patcher.patches_uuid, patcher.injections


def apply(patcher: Any) -> None:
    """Make a patcher's model run as was chosen for the patcher."""
    model = patcher.model
    chosen, before = patcher.attachments.get(KEY), model.__dict__.get(KEY)
    if chosen is None or before == chosen:
        return
    choices.note(model, chosen)
    if before is None or before.mode != chosen.mode:
        _set_mode(model, chosen.mode)
    if recorded_blocks.wanted(model):
        recorded_blocks.use(model)
    else:
        recorded_blocks.release(model)


def _set_mode(model: Any, mode: str) -> None:
    kind = backends.choose_fast(compat.model_management.get_torch_device())[0] if mode == FAST else None
    make_exact(model)
    fewer_passes.stop(model.diffusion_model)
    if kind is not None:
        make_fast(model, kind)
        fewer_passes.use(model.diffusion_model, kind)


def make_fast(model: torch.nn.Module, kind: str) -> None:
    """Let the packed layers multiply in 8 bits, and the projections of each attention share their rotated input."""
    for module in model.modules():
        if isinstance(module, PackedOperations.Linear):
            module.eight_bit = kind
        children = dict(module.named_children())
        for names in (("to_q", "to_k", "to_v"), ("q", "k", "v")):
            layers: list[Any] = [children.get(name) for name in names]
            if all(
                isinstance(layer, PackedOperations.Linear) and packed_tensor.is_packed(layer.weight) for layer in layers
            ):
                shared = fast.SharedInput()
                for layer in layers:
                    layer.shared, layer.last_of_shared = shared, layer is layers[-1]


def make_exact(model: torch.nn.Module) -> None:
    """Take back what `make_fast` set: the layers decode their weights."""
    for module in model.modules():
        if isinstance(module, PackedOperations.Linear):
            for name in ("eight_bit", "shared", "last_of_shared", "input_is_read_again"):
                module.__dict__.pop(name, None)
