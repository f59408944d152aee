"""The attention that the loader was asked for, hung in where ComfyUI lets a model bring its own: `optimized_attention_override`.

A node that sets another attention later replaces it, and *auto* gives way to the attention that ComfyUI was started with.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ...hlwq_core import switches
from ...hlwq_core.errors import is_refusal
from ...hlwq_core.running import attention
from ...hlwq_core.running.pending import made
from .. import compat
from .choices import AUTO

KEY = compat.ATTENTION_OVERRIDE
SWITCH = "HLWQ_ATTENTION"
COMFYUI, CUDNN, COMFY_KITCHEN, SAGE = "comfyui", "cudnn", "comfy_kitchen", "sage"
NAMES = (AUTO, COMFYUI, CUDNN, COMFY_KITCHEN, SAGE)
# What core calls the attentions that multiply in 8 bits, and why it may have none.
IN_8_BITS = {
    COMFY_KITCHEN: ("comfy_kitchen_int8", "this ComfyUI has no comfy-kitchen attention, or the card cannot run it"),
    SAGE: ("sage", "the Python package sageattention is not installed"),
}
# Why a kernel is not used any more, by its name, once it has failed.
_refused: dict[str, str] = {}

_log = logging.getLogger("hlwq")
Attention = Callable[..., torch.Tensor]


class Choice(NamedTuple):
    """What a name comes to on a device.

    Attributes:
        override: for `transformer_options`; None leaves attention to ComfyUI.
        words: for the loader's report.
    """

    override: Attention | None
    words: str


def _plain(q: torch.Tensor, k: torch.Tensor, heads: int, args: tuple, options: dict[str, Any]) -> bool:
    """Whether a call is plain attention of a size that a faster kernel pays for."""
    special = any(options.get(name) for name in ("skip_reshape", "skip_output_reshape", "enable_gqa"))
    return not args and options.get("mask") is None and not special and attention.fits(q, k, heads)


def _try(name: str, attend: Attention, otherwise: Attention) -> torch.Tensor:
    """The result of a kernel; once it was refused, another's from then on. A lack of memory is none of its faults."""
    try:
        return attend()
    except RuntimeError as error:
        if not is_refusal(error):
            raise
        _refused[name] = str(error)
        _log.warning("HLWQ: attention as ComfyUI has it from now on, %s failed: %s", name, str(error).splitlines()[0])
    return otherwise()


def _by_cudnn(
    function: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, *args: Any, **options: Any
) -> torch.Tensor:
    def usual() -> torch.Tensor:
        return function(q, k, v, heads, *args, **options)

    if CUDNN in _refused or not _plain(q, k, heads, args, options):
        return usual()
    return _try(CUDNN, lambda: attention.attend(q, k, v, heads, options.get("scale")), usual)


def faster_attention(function: Attention, q: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
    """`attention.attend` where it computes what core's function would, and faster; else that function.

    Whoever started ComfyUI with another attention (sage, flash, xformers, split) keeps it.
    """
    q, others = made((q, others))
    if function is not compat.attention_pytorch:
        return function(q, *others, **options)
    return _by_cudnn(function, q, *others, **options)


def cudnn_attention(function: Attention, q: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
    """The same, for those who asked for it: also where ComfyUI was started with another attention."""
    q, others = made((q, others))
    return _by_cudnn(function, q, *others, **options)


def _in_8_bits(name: str) -> Attention:
    def attend(
        function: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, *args: Any, **options: Any
    ) -> torch.Tensor:
        chosen = compat.attention_function(IN_8_BITS[name][0])
        if chosen is None or name in _refused or not _plain(q, k, heads, args, options):
            return function(q, k, v, heads, *args, **options)
        return _try(name, lambda: chosen(q, k, v, heads, **options), lambda: function(q, k, v, heads, *args, **options))

    return attend


_OVERRIDES = {
    AUTO: faster_attention,
    CUDNN: cudnn_attention,
    **{name: _in_8_bits(name) for name in IN_8_BITS},
}


def choose(name: str, device: torch.device) -> Choice:
    """What one of `NAMES` comes to on a device. Compares the kernel with attention written out, once."""
    if name == COMFYUI or switches.off(SWITCH):
        return Choice(None, "as ComfyUI has it")
    if name in IN_8_BITS:
        reason = _unavailable_reason(name, device)
        words = f"in 8 bits by {name}"
    else:
        reason = compat.reason(compat.Feature.FASTER_ATTENTION) or attention.unavailable_reason(device)
        words = "by cuDNN"
    if reason is not None:
        return Choice(None, f"as ComfyUI has it: {reason}")
    return Choice(_OVERRIDES[name], words)


@functools.lru_cache(maxsize=16)
def _unavailable_reason(name: str, device: torch.device) -> str | None:
    """Why an attention in 8 bits cannot be used on a device; None if it can."""
    if off := compat.reason(compat.Feature.FASTER_ATTENTION):
        return off
    key, reason = IN_8_BITS[name]
    chosen = compat.attention_function(key)
    if chosen is None:
        return reason
    try:
        for size in attention.HEAD_SIZES:
            attention.prove(device, size, chosen, attention.ALLOWED_IN_8_BITS)
    except Exception as error:  # a package of others: whatever it says, it is not used
        return str(error).split("\n", 1)[0]
    return None


def name_of(override: Any) -> str | None:
    """The name of an override of ours; None for any other."""
    return next((name for name, ours in _OVERRIDES.items() if override is ours), None)


def named(name: str) -> Attention:
    """The override of a name."""
    return _OVERRIDES[name]


def is_known(override: Any) -> bool:
    """Whether an override of the attention calls a kernel and does nothing else: one of ours, or of core's own node."""
    return name_of(override) is not None or compat.is_cores_override(override)


def use(patcher: Any, override: Attention | None) -> None:
    """Let the patcher's model, and its clones, attend by an override; one that is there already stays."""
    if override is not None:
        patcher.model_options.setdefault("transformer_options", {}).setdefault(KEY, override)


def drop(patcher: Any) -> None:
    """Take back what `use` gave; what another node set stays."""
    options = patcher.model_options.get("transformer_options", {})
    if name_of(options.get(KEY)) is not None:
        del options[KEY]
