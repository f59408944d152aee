"""What cannot be computed by several cards, named before anything is sampled: code of other nodes that changes what the blocks do
runs in ComfyUI's process, and in no other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...hlwq_core.errors import UnsupportedError
from .. import compat
from ..running import faster_attention
from . import patches

KEY = "hlwq_several_gpus"
# Of `transformer_options`: for ComfyUI's process alone, or told to the others in another way.
STAYS = {"callbacks", "wrappers", "uuids", faster_attention.KEY}


def refuse(patcher: Any, options: dict[str, Any], conds: dict[str, list[dict[str, Any]]]) -> None:
    """Raises:
    UnsupportedError: something of this sampling run cannot be computed by several cards; names it, and who set it.
    """
    for what in _foreign(patcher, options, conds):
        raise UnsupportedError(
            "this cannot be computed by several cards",
            expected="what changes the model's weights or inputs, not what its blocks do",
            found=what,
            fix="take the node that sets it out of the workflow, or HLWQ Several GPUs",
        )
    patches.refuse_unsendable(patcher.patches)


def _foreign(patcher: Any, options: dict[str, Any], conds: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    if patcher.get_additional_models_with_key("multigpu"):
        yield "ComfyUI's MultiGPU CFG Split: use one of the two"
    for name in patcher.object_patches:
        if name.startswith("diffusion_model."):
            yield f"the object patch {name}{_by(patcher.object_patches[name])}"
    for name in patcher.injections:
        yield f"the injection {name}, as of a LoRA in bypass mode"
    if patcher.hook_patches or any("hooks" in cond and cond["hooks"] for of_kind in conds.values() for cond in of_kind):
        yield "hooks of a condition"
    if patcher.weight_wrapper_patches:
        yield f"weight functions of {next(iter(patcher.weight_wrapper_patches))}"
    inner = options.get("transformer_options", {})
    if "torch.compile" in inner.get("wrappers", {}).get("apply_model", {}) or "torch.compile" in patcher.wrappers.get(
        "apply_model", {}
    ):
        yield "torch.compile"
    yield from of_options(inner)


def of_options(options: dict[str, Any]) -> Iterator[str]:
    """What of `transformer_options` is code, or means nothing to another process."""
    for name in ("patches", "patches_replace"):
        for kind, given in options.get(name, {}).items():
            if given:
                yield f"{name} of {kind}{_by(given)}"
    attention = options.get(faster_attention.KEY)
    if attention is not None and faster_attention.name_of(attention) is None:
        yield f"the attention{_by(attention)}: choose it in HLWQ's loader instead"


def _by(value: Any) -> str:
    while isinstance(value, (dict, list, tuple)) and value:
        value = next(iter(value.values())) if isinstance(value, dict) else value[0]
    module = compat.defined_in(value)
    return "" if module == "builtins" or module.startswith("torch") else f", set by {module}"
