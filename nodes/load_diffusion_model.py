"""Load Diffusion Model: MODEL alone from an HLWQ file or folder, in the place of core's Load Diffusion Model."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import locations
from .load_checkpoint import HLWQLoadCheckpoint, load_checkpoint
from .loader_inputs import decoding_inputs
from .running.choices import Choices


class HLWQLoadDiffusionModel(io.ComfyNode):
    """The diffusion model of an HLWQ checkpoint; VAE and text encoder come from loaders of their own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="HLWQLoadDiffusionModel",
            display_name="HLWQ Load Diffusion Model",
            category="HLWQ/loaders",
            description="Loads the diffusion model of an HLWQ file or folder, its weights packed. Stands where Load Diffusion "
            "Model stands in any workflow; VAE and text encoder come from their own loaders.",
            search_aliases=[
                "hlwq",
                "polarquant",
                "ltx",
                "q5",
                "5 bit",
                "quantized",
                "low vram",
                "load diffusion model",
                "unet loader",
                "transformer",
            ],  # fmt: skip
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=list(locations.checkpoints()),
                    tooltip="A file or folder under models/diffusion_models, models/hlwq or models/checkpoints, "
                    "recognised by what it holds.",
                ),
                *decoding_inputs(),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The diffusion model, its weights packed."),
                io.String.Output(display_name="report", tooltip="What was loaded and how it is decoded."),
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint: str) -> bool | str:
        """Say before anything runs that a checkpoint is not there, and which are."""
        return HLWQLoadCheckpoint.validate_inputs(checkpoint)

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, **others: Any) -> list[tuple[str, int, int]]:
        """The files: a checkpoint that was repaired or replaced is loaded again."""
        return HLWQLoadCheckpoint.fingerprint_inputs(checkpoint)

    @classmethod
    def execute(
        cls,
        checkpoint: str,
        **inputs: Any,
    ) -> io.NodeOutput:
        """Load the diffusion model."""
        path = locations.checkpoint(checkpoint)
        model, _, _, report = load_checkpoint(path, Choices(**inputs), vaes=False, share=True)
        return io.NodeOutput(model, report)
