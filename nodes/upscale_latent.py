"""HLWQ Upscale Latent: LTX's spatial and temporal latent upscalers on video or joint audio-video latents."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..hlwq_core.errors import InputError
from . import compat

MODES = ("spatial", "temporal", "both")


class HLWQUpscaleLatent(io.ComfyNode):
    """LATENT [batch, 128, frames, height, width], alone or with its audio -> the same, larger; the frame rate."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HLWQUpscaleLatent",
            display_name="HLWQ Upscale Latent",
            category="HLWQ/latent",
            description="Doubles width and height, or the frame rate, or both, of an LTX video latent. "
            "The sound of a joint audio-video latent passes through untouched. ComfyUI begins latents at multiples of 32 pixels "
            "and 8 n + 1 frames: other sizes were rounded down before they come here.",
            search_aliases=[
                "latent upsampler",
                "spatial upscaler",
                "temporal upscaler",
                "frame interpolation",
            ],
            inputs=[
                io.Latent.Input(
                    "latent", tooltip="An LTX video latent, or the joint audio-video latent of the sampler."
                ),
                io.Vae.Input("vae", tooltip="The checkpoint's video VAE: its channel statistics frame the upscaler."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="spatial",
                    tooltip="spatial: twice the width and height. temporal: 2 n - 1 frames at twice the frame rate, "
                    "so the video lasts as long as before. both: first spatial, then temporal.",
                ),
                io.Float.Input(
                    "frame_rate",
                    default=24.0,
                    min=1.0,
                    max=1000.0,
                    step=0.001,
                    tooltip="Frames a second of the latent that comes in.",
                ),
                io.LatentUpscaleModel.Input(
                    "spatial_upscaler",
                    optional=True,
                    tooltip="ltx-2.3-spatial-upscaler-x2; for spatial and both.",
                ),
                io.LatentUpscaleModel.Input(
                    "temporal_upscaler",
                    optional=True,
                    tooltip="ltx-2.3-temporal-upscaler-x2; for temporal and both.",
                ),
            ],
            outputs=[
                io.Latent.Output("latent", tooltip="The upscaled latent, joint again if it came so."),
                io.Float.Output(
                    "frame_rate",
                    tooltip="The frame rate to condition and play the result at: doubled by temporal and both.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, mode: str) -> bool | str:
        """Say before anything runs that this ComfyUI has no upscalers as the pack knows them."""
        if mode not in MODES:
            return f"{mode} is no mode: choose one of {', '.join(MODES)}"
        return compat.why_not(compat.Feature.UPSCALERS) or True

    @classmethod
    def execute(
        cls,
        latent: dict[str, Any],
        vae: Any,
        mode: str,
        frame_rate: float,
        spatial_upscaler: Any = None,
        temporal_upscaler: Any = None,
    ) -> io.NodeOutput:
        compat.require(compat.Feature.UPSCALERS)
        parts = compat.latent_parts(latent["samples"])
        video = parts[0]
        check_latent(parts, vae)
        steps = []
        if mode in ("spatial", "both"):
            steps.append(("spatial", spatial_upscaler))
        if mode in ("temporal", "both"):
            if video.shape[2] < 2:
                raise InputError(
                    "one latent frame has no motion to double",
                    expected="at least 2 latent frames (9 video frames)",
                    found=list(video.shape),
                    fix="choose the mode spatial, or sample a longer video",
                )
            steps.append(("temporal", temporal_upscaler))
            frame_rate = 2 * frame_rate
        for kind, model in steps:
            check_upscaler(kind, model, video.shape[1], mode)
        for _, model in steps:
            video = compat.upsample_latent(video, model, vae)
        # Like core's upsampler, drop the video's noise mask: it marked what the small latent had to keep, and an image
        # set again behind this node brings its own. The sound keeps its mask, or a given sound would be sampled anew.
        result = {key: value for key, value in latent.items() if key != "noise_mask"}
        result["samples"] = compat.join_latents([video, *parts[1:]]) if len(parts) > 1 else video
        mask = latent.get("noise_mask")
        if len(parts) > 1 and getattr(mask, "is_nested", False):
            free = torch.ones(video.shape[0], 1, *video.shape[2:], device=video.device)
            result["noise_mask"] = compat.join_latents([free, *compat.latent_parts(mask)[1:]])
        return io.NodeOutput(result, frame_rate)


def check_latent(parts: list[torch.Tensor], vae: Any) -> None:
    """Refuse a latent that is not LTX's, and a VAE that is not LTX's video VAE."""
    channels = compat.video_vae_channels(vae)
    if channels is None:
        raise InputError(
            "this VAE is not LTX's video VAE",
            expected="the VAE output of HLWQ Load Checkpoint",
            found=type(getattr(vae, "first_stage_model", vae)).__name__,
            fix="connect VAE, not AUDIO VAE, nor another model's",
        )
    video = parts[0]
    if video.ndim != 5 or video.shape[1] != channels:
        sound = video.ndim == 4
        raise InputError(
            "this is not an LTX video latent",
            expected=f"[batch, {channels}, frames, height / 32, width / 32]",
            found=list(video.shape),
            fix="connect the video latent or the joint latent: an image's or the audio latent alone cannot be upscaled"
            if sound
            else "connect the latent that an LTX model sampled",
        )


def check_upscaler(kind: str, model: Any, channels: int, mode: str) -> None:
    """Refuse a missing upscaler, one of the other kind, and one that is not LTX's."""
    socket = f"{kind}_upscaler"
    if model is None:
        raise InputError(
            f"the mode {mode} needs a {kind} upscaler",
            expected=f"an LTX {kind} upscaler in the input {socket}",
            found="nothing connected",
            fix="connect HLWQ Load Upscaler, or choose another mode",
        )
    found = compat.upscaler_kind(model)
    if found != kind:
        raise InputError(
            f"the wrong upscaler is in the input {socket}",
            expected=f"an LTX {kind} upscaler",
            found=f"an LTX {found} upscaler"
            if found
            else f"{type(getattr(model, 'model', model)).__name__}, not one of LTX's",
            fix=f"load ltx-2.3-{kind}-upscaler-x2 for this input",
        )
    if model.model.in_channels != channels:
        raise InputError(
            f"the {kind} upscaler does not fit the latent",
            expected=f"an upscaler of {channels} channels",
            found=f"{model.model.in_channels} channels",
            fix="take the upscaler that belongs to the checkpoint",
        )
