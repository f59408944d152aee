"""What ComfyUI asks the pack for: its nodes and its routes."""

from __future__ import annotations

import logging

from comfy_api.latest import ComfyExtension, io

from . import routes  # noqa: F401  the routes of the front end register themselves
from .frontend_floor import old_frontend
from .load_checkpoint import HLWQLoadCheckpoint
from .load_diffusion_model import HLWQLoadDiffusionModel
from .load_upscaler import HLWQLoadUpscaler
from .save_audio_video import HLWQSaveAudioVideo
from .text_encoder import HLWQLoadTextEncoder
from .tools import HLWQDownload, HLWQInspect, HLWQQuantize, HLWQRepair, HLWQVerify
from .upscale_latent import HLWQUpscaleLatent


class HLWQExtension(ComfyExtension):
    """The pack as ComfyUI sees it."""

    async def on_load(self) -> None:
        """Name a frontend that is too old for the panels."""
        if reason := old_frontend():
            logging.getLogger("hlwq").warning("%s", reason)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The node classes, in the order of a workflow."""
        return [
            HLWQLoadCheckpoint,
            HLWQLoadDiffusionModel,
            HLWQLoadTextEncoder,
            HLWQLoadUpscaler,
            HLWQUpscaleLatent,
            HLWQSaveAudioVideo,
            HLWQInspect,
            HLWQVerify,
            HLWQQuantize,
            HLWQRepair,
            HLWQDownload,
        ]
