"""The floor under the frontend: web/ uses its extension API, which comes in a package of its own."""

from __future__ import annotations

import importlib.metadata
import re

# The frontend that web/ is written and tested against; requirements.txt says the same.
FRONTEND_FLOOR = "1.47.12"


def old_frontend() -> str | None:
    """What to tell the user whose frontend package is older than web/ needs; None if it is new enough."""
    try:
        found = importlib.metadata.version("comfyui-frontend-package")
    except importlib.metadata.PackageNotFoundError:
        return None  # a frontend of the user's own: --front-end-root
    if _numbers(found) >= _numbers(FRONTEND_FLOOR):
        return None
    return (
        f"ComfyUI-HLWQ: the frontend {found} is older than {FRONTEND_FLOOR}. The nodes work, their panels may not: "
        "update ComfyUI, or run pip install -U comfyui-frontend-package."
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
