"""What ComfyUI asks the pack for: its nodes, its model folder, its routes."""

from __future__ import annotations

import importlib
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


class HLWQExtension(ComfyExtension):
    """The pack as ComfyUI sees it."""

    async def on_load(self) -> None:
        """The routes of the front end register themselves as they are imported."""
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
