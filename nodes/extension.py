"""What ComfyUI asks the pack for: its nodes, its model folder, its routes."""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import re
from pathlib import Path

from comfy_api.latest import ComfyExtension, io

# Modules and their nodes, in the order of a workflow.
NODES = {
    "load_checkpoint": ("HLWQLoadCheckpoint",),
    "text_encoder": ("HLWQLoadTextEncoder",),
    "load_upscaler": ("HLWQLoadUpscaler",),
    "upscale_latent": ("HLWQUpscaleLatent",),
    "save_audio_video": ("HLWQSaveAudioVideo",),
    "tools": ("HLWQInspect", "HLWQVerify", "HLWQQuantize", "HLWQRepair", "HLWQDownload"),
}


# The frontend whose extension API web/ is written and tested against.
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


class HLWQExtension(ComfyExtension):
    """The pack as ComfyUI sees it."""

    async def on_load(self) -> None:
        """The routes of the front end register themselves as they are imported."""
        if reason := old_frontend():
            logging.getLogger("hlwq").warning("%s", reason)
        if _there("routes"):
            importlib.import_module(".routes", __package__)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The node classes."""
        return [
            getattr(importlib.import_module(f".{module}", __package__), name)
            for module, names in NODES.items()
            if _there(module)
            for name in names
        ]


def _there(module: str) -> bool:
    return (Path(__file__).parent / f"{module}.py").is_file()
