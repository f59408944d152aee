"""Core's attentions, those of other packs, and what else decides by which kernels a model computes."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from . import contract

# By this key of `transformer_options` a model brings its own attention.
ATTENTION_OVERRIDE = "optimized_attention_override"
_attention = contract.module("comfy.ldm.modules.attention")


def attention_function(name: str) -> Any:
    """One of core's attentions by the name that it has there; None where this ComfyUI or its packages have none of it."""
    return _attention.get_attention_function(name, None)


def defined_in(value: Any) -> str:
    """The Python module in whose code a function or method is written, or the class of an object, whatever it wraps."""
    function = getattr(value, "__func__", value)
    named = getattr(function, "__globals__", {}).get("__name__")
    return str(named or type(value).__module__)


def is_cores_override(override: Any) -> bool:
    """Whether an override of the attention is the one that core's node sets: another of core's functions, and nothing else."""
    if defined_in(override) != "comfy.model_patcher":
        return False
    attends = inspect.getclosurevars(override).nonlocals.get("optimized_attention")
    # Behind core's decorator, which other packs may use too.
    return attends is not None and defined_in(inspect.unwrap(attends)) == _attention.__name__


def arithmetic() -> tuple:
    """What decides by which kernels blocks compute, besides the blocks themselves: core's attention, which nodes replace, and
    torch's switches."""
    products = torch.backends.cuda.matmul
    return (
        getattr(_attention, "optimized_attention", None),
        getattr(_attention, "optimized_attention_masked", None),
        products.allow_tf32,
        getattr(products, "allow_fp16_accumulation", None),
        torch.is_inference_mode_enabled(),
    )
