"""A model's patches for another process: tensors in a safetensors file that all of them map, and the rest as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ...hlwq_core.errors import UnsupportedError
from ...hlwq_core.parallel import message
from .. import compat


def write(patches: dict[str, list[tuple]], file: Path) -> Any:
    """Patches as JSON, their tensors in a file.

    Args:
        patches: as a patcher of ComfyUI has them.
        file: of the tensors.

    Raises:
        UnsupportedError: a patch that another process cannot be told of.
    """
    tensors: list[torch.Tensor] = []
    found = [[key, [_pack(key, patch, tensors) for patch in of_key]] for key, of_key in patches.items()]
    stored = {str(place): tensor.detach().cpu().contiguous().clone() for place, tensor in enumerate(tensors)}
    safetensors.torch.save_file(stored, file)
    return found


def read(found: Any, file: Path) -> dict[str, list[tuple]]:
    """The inverse of `write`."""
    stored = safetensors.torch.load_file(file)
    tensors = [stored[str(place)] for place in range(len(stored))]
    return {key: [_unpack(patch, tensors) for patch in of_key] for key, of_key in found}


def refuse_unsendable(patches: dict[str, list[tuple]]) -> None:
    """Raises:
    UnsupportedError: a patch that another process cannot be told of.
    """
    for key, of_key in patches.items():
        for patch in of_key:
            _pack(key, patch, [])


def _pack(key: str, patch: tuple, tensors: list[torch.Tensor]) -> Any:
    strength, value, strength_model, offset, function = patch
    if function is not None:
        raise _refusal(key, f"a function of {compat.defined_in(function)} that changes the weight")
    try:
        if isinstance(value, compat.WeightAdapterBase):
            kind = compat.adapter_name(value)
            if kind is None:
                raise _refusal(key, f"a {type(value).__name__} of {type(value).__module__}")
            content = [kind, sorted(map(str, value.loaded_keys)), message.pack(value.weights, tensors)]
        else:
            content = [None, None, message.pack(value, tensors)]
    except message.Unsendable as error:
        raise _refusal(key, str(error)) from error
    return [strength, content, strength_model, None if offset is None else list(offset)]


def _unpack(patch: Any, tensors: list[torch.Tensor]) -> tuple:
    strength, (kind, keys, content), strength_model, offset = patch
    value = message.unpack(content, tensors)
    if kind is not None:
        value = compat.adapter_named(kind)(set(keys), value)
    return strength, value, strength_model, None if offset is None else tuple(offset), None


def _refusal(key: str, found: str) -> UnsupportedError:
    return UnsupportedError(
        "a patch of the model cannot be computed by several cards",
        tensor=key,
        expected="LoRAs and other patches made of tensors",
        found=found,
        fix="take the node that sets it out, or HLWQ Several GPUs",
    )
