"""What several processes of one ComfyUI need of it: the same ComfyUI in another process, patches, memory, and the user's stop."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import boot, contract

InterruptProcessingException = contract.get("comfy.model_management.InterruptProcessingException")
_adapters = contract.get("comfy.weight_adapter.adapters")
_args = contract.module("comfy.cli_args").args
_management = contract.module("comfy.model_management")

BOOT = Path(boot.__file__)


def same_comfyui() -> dict[str, Any]:
    """What `boot.py` needs to start this ComfyUI, and this pack in it, in another process."""
    return {
        "comfyui": str(Path(inspect.getfile(_management)).parents[1]),
        "pack": str(Path(__file__).parents[2]),
        "arguments": boot.arguments(_args),
    }


def adapter_name(adapter: Any) -> str | None:
    """The name of core's class that a patch's value is of; None for a class of others."""
    return type(adapter).__name__ if type(adapter) in _adapters else None


def adapter_named(name: str) -> Any:
    """Core's class of that name."""
    return next(kind for kind in _adapters if kind.__name__ == name)


def take_patches(patcher: Any, patches: dict[str, list[tuple]]) -> None:
    """Give a patcher another's patches, which were looked at there."""
    patcher.patches = patches
    patcher.patches_uuid = uuid.uuid4()


def load_for_sampling(patcher: Any, shape: Sequence[int]) -> None:
    """Load a model as for a sampling run of noise of this shape, with what its forward needs."""
    needed = patcher.model.memory_required([shape[0] * 2, *shape[1:]])
    least = patcher.model.memory_required(list(shape))
    _management.load_models_gpu([patcher], memory_required=needed, minimum_memory_required=least)


def is_interrupted() -> bool:
    """Whether the user wants this prompt to stop."""
    return bool(_management.processing_interrupted())
