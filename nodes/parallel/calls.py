"""A forward of the diffusion model as a message: what ComfyUI's process calls, every other process calls as well."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from ...hlwq_core.errors import UnsupportedError
from ...hlwq_core.parallel import message
from ..running import faster_attention
from . import refusals


def arguments_of(forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call, by name."""
    given = inspect.signature(forward).bind(*args, **kwargs).arguments
    return {**given, **given.pop("kwargs", {})}


def pack(arguments: dict[str, Any], tensors: list[torch.Tensor]) -> Any:
    """They as JSON, their tensors apart.

    Raises:
        UnsupportedError: one of them means nothing to another process.
    """
    options = arguments.get("transformer_options") or {}
    for what in refusals.of_options(options):
        raise _refusal(what)
    attention = options.get(faster_attention.KEY)
    left_out = refusals.STAYS | {"patches", "patches_replace"}
    plain = {name: value for name, value in options.items() if name not in left_out}
    sent = {**arguments, "transformer_options": plain}
    try:
        packed = message.pack(sent, tensors, "an argument of the model")
    except message.Unsendable as error:
        raise _refusal(str(error)) from error
    return {"arguments": packed, "attention": None if attention is None else faster_attention.name_of(attention)}


def unpack(packed: Any, tensors: list[torch.Tensor]) -> dict[str, Any]:
    """The inverse of `pack`."""
    arguments = message.unpack(packed["arguments"], tensors)
    if packed["attention"] is not None:
        arguments["transformer_options"][faster_attention.KEY] = faster_attention.named(packed["attention"])
    return arguments


def _refusal(found: str) -> UnsupportedError:
    return UnsupportedError(
        "this cannot be computed by several cards",
        expected="tensors, numbers and words",
        found=found,
        fix="take the node that sets it out of the workflow, or HLWQ Several GPUs",
    )
