"""What ComfyUI asks the pack for: its nodes and its routes."""

from __future__ import annotations

import importlib
import logging

from comfy_api.latest import ComfyExtension, io

from . import routes  # noqa: F401  the routes of the front end register themselves
from .frontend_floor import old_frontend

# The modules of the nodes, one each, in the order of a workflow.
NODES = (
    "load_checkpoint",
    "load_diffusion_model",
    "several_gpus",
    "text_encoder",
    "load_upscaler",
    "upscale_latent",
    "decode_save",
    "save_audio_video",
    "inspect_checkpoint",
    "verify_checkpoint",
    "calibrate",
    "quantize_model",
    "repair_checkpoint",
    "download_checkpoint",
)


def node_of(name: str) -> type[io.ComfyNode]:
    """The one node class that a module defines."""
    module = importlib.import_module(f".{name}", __package__)
    (node,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, io.ComfyNode) and value.__module__ == module.__name__
    )
    return node


class HLWQExtension(ComfyExtension):
    """The pack as ComfyUI sees it."""

    async def on_load(self) -> None:
        """Name a frontend that is too old for the panels."""
        if reason := old_frontend():
            logging.getLogger("hlwq").warning("%s", reason)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The node classes, in the order of a workflow."""
        return [node_of(name) for name in NODES]
