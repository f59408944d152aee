"""Fast mode's attention, hung in where ComfyUI lets a model bring its own: `optimized_attention_override`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from ...hlwq_core.errors import is_refusal
from ...hlwq_core.running import attention
from .. import compat

KEY = "optimized_attention_override"
# Why cuDNN's attention is not used any more, once it has failed.
_refused: list[str] = []

_log = logging.getLogger("hlwq")


def faster_attention(
    function: Callable[..., torch.Tensor],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    heads: int,
    *args: Any,
    **options: Any,
) -> torch.Tensor:
    """`attention.attend` where it computes what the chosen function would, and faster; else that function.

    Whoever started ComfyUI with another attention (sage, flash, xformers, split) keeps it.
    """
    same = (
        function is compat.attention_pytorch
        and not args
        and options.get("mask") is None
        and not any(options.get(name) for name in ("skip_reshape", "skip_output_reshape", "enable_gqa"))
    )
    if same and attention.fits(q, k, heads) and not _refused:
        try:
            return attention.attend(q, k, v, heads, options.get("scale"))
        except RuntimeError as error:
            if not is_refusal(error):
                raise
            _refused.append(str(error))
            _log.warning(
                "HLWQ: attention as ComfyUI has it from now on, cuDNN's failed: %s", _refused[0].splitlines()[0]
            )
    return function(q, k, v, heads, *args, **options)


def unavailable_reason(device: torch.device) -> str | None:
    """Why attention is left as it is; None if it need not be."""
    return compat.reason(compat.Feature.FASTER_ATTENTION) or attention.unavailable_reason(device)


def use(patcher: Any) -> None:
    """Let the patcher's model, and its clones, attend faster; a node that sets its own attention later replaces it."""
    patcher.model_options.setdefault("transformer_options", {}).setdefault(KEY, faster_attention)
