"""The nodes of the pack, and the floor under the ComfyUI that they run in. Nothing of ComfyUI is imported before it is known
to be new enough."""

from __future__ import annotations

import functools
import logging
import re
from typing import Any

COMFYUI_FLOOR = (0, 30, 0)


@functools.lru_cache(maxsize=1)
def too_old() -> bool:
    """Whether this ComfyUI is older than the pack can live in; says so in the log, once."""
    reason = why_too_old(comfyui_version())
    if reason is not None:
        logging.getLogger("hlwq").error("%s", reason)
    return reason is not None


def why_too_old(version: str) -> str | None:
    """Why the pack does not run in a ComfyUI of this version; None if it does."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if numbers >= COMFYUI_FLOOR:
        return None
    floor = ".".join(map(str, COMFYUI_FLOOR))
    return f"ComfyUI-HLWQ needs ComfyUI {floor} or newer and found {version}: update ComfyUI. No HLWQ node was loaded."


def comfyui_version() -> str:
    try:
        from comfyui_version import __version__
    except ImportError:
        return "one without a version"
    return __version__


def moved() -> list[str]:
    """The names that the pack relies on and this ComfyUI has no more, as far as that can be told."""
    try:
        from .compat import contract, table
    except (ImportError, AttributeError):
        return []
    return list(dict.fromkeys(map(str, contract.compare(table.TABLE))))


async def comfy_entrypoint() -> Any:
    """ComfyUI's way in.

    Raises:
        ImportError: this ComfyUI lacks something that the pack builds on; says what, and what to do.
    """
    try:
        from .extension import HLWQExtension
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"ComfyUI-HLWQ does not fit this ComfyUI ({comfyui_version()}): {'; '.join([str(error), *moved()])}. Update "
            "ComfyUI-HLWQ; if it is the newest, please report this. No HLWQ node was loaded."
        ) from error
    return HLWQExtension()
