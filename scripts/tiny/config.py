"""The tiny model's config: LTX-2.3's own with fewer layers and channels; all else is the same."""

from __future__ import annotations

import copy
from typing import Any

from hlwq_core.models.ltx23 import config as ltx23_config

VIDEO_HEADS, VIDEO_HEAD = 4, 64
AUDIO_HEADS, AUDIO_HEAD = 4, 24
VIDEO_WIDTH = VIDEO_HEADS * VIDEO_HEAD  # two whole blocks of 128
AUDIO_WIDTH = AUDIO_HEADS * AUDIO_HEAD  # less than one: padded
BLOCKS = 2
CONNECTOR_LAYERS = 2
GEMMA_WIDTH = 64

GEMMA = {
    "hidden_size": GEMMA_WIDTH,
    "intermediate_size": 128,
    "num_hidden_layers": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vision": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "image_size": 224,
        "patch_size": 14,
    },
}
# Where Gemma 4 differs: layers that attend to everything are wider and share one key.
GEMMA4 = {"head_dim": 16, "global_head_dim": 32, "num_global_key_value_heads": 1}


def config() -> dict[str, Any]:
    """The config as ComfyUI reads it from checkpoint metadata."""
    tiny: dict[str, Any] = copy.deepcopy(ltx23_config())
    tiny["transformer"].update(
        num_layers=BLOCKS,
        attention_head_dim=VIDEO_HEAD,
        num_attention_heads=VIDEO_HEADS,
        cross_attention_dim=VIDEO_WIDTH,
        audio_attention_head_dim=AUDIO_HEAD,
        audio_num_attention_heads=AUDIO_HEADS,
        audio_cross_attention_dim=AUDIO_WIDTH,
        caption_channels=GEMMA_WIDTH,
        connector_num_layers=CONNECTOR_LAYERS,
        connector_attention_head_dim=VIDEO_HEAD,
        connector_num_attention_heads=VIDEO_HEADS,
        audio_connector_attention_head_dim=AUDIO_HEAD,
        audio_connector_num_attention_heads=AUDIO_HEADS,
    )
    tiny["vae"].update(encoder_base_channels=8, decoder_base_channels=8)
    tiny["audio_vae"]["model"]["params"]["ddconfig"]["ch"] = 8
    tiny["vocoder"]["vocoder"]["upsample_initial_channel"] = 64
    tiny["vocoder"]["bwe"]["upsample_initial_channel"] = 32
    return tiny


def whole_ltx2_config() -> dict[str, Any]:
    """The config of a tiny LTX-2 with its VAEs: the vocoder is one, which makes all of the sound."""
    tiny = config()
    vocoder = {"upsample_initial_channel": 64, "stereo": True}
    return {**version_config("ltx2"), "vae": tiny["vae"], "audio_vae": tiny["audio_vae"], "vocoder": vocoder}


def version_config(version: str) -> dict[str, Any]:
    """The config of a tiny transformer alone, of another version: `ltx25` or `ltx2`."""
    tiny = {"transformer": config()["transformer"]}
    if version == "ltx25":
        tiny["transformer"] |= {"ff_bias": False, "audio_ff_bias": True}
    else:
        tiny["transformer"] |= {
            "apply_gated_attention": False,
            "connector_apply_gated_attention": False,
            "cross_attention_adaln": False,
            "caption_proj_before_connector": False,
            "caption_channels": GEMMA_WIDTH,
            "connector_attention_head_dim": 32,
            "connector_num_attention_heads": GEMMA_WIDTH // 32,
            "audio_connector_attention_head_dim": 32,
            "audio_connector_num_attention_heads": GEMMA_WIDTH // 32,
        }
    return tiny


def upscaler_config(kind: str) -> dict[str, Any]:
    """An upscaler's config as it stands in file metadata; `kind` is spatial or temporal."""
    return {
        "_class_name": "LatentUpsampler",
        "in_channels": 128,
        "mid_channels": 32,
        "num_blocks_per_stage": 4,
        "dims": 3,
        "spatial_upsample": kind == "spatial",
        "temporal_upsample": kind == "temporal",
        "spatial_scale": 2.0,
        "rational_resampler": False,
    }


def split_vae_config(kind: str) -> dict[str, Any]:
    """The config of one of LTX-2.5's VAE files: `video` (a decoder that diffuses), `video-conv`, or `audio`."""
    tiny = config()
    if kind == "audio":
        return {name: tiny[name] for name in ("audio_vae", "vocoder")}
    if kind == "video-conv":
        return {"vae": tiny["vae"]}
    blocks = tiny["vae"]["encoder_blocks"]
    encoder = {
        "dims": 3,
        "in_channels": 3,
        "out_channels": 128,
        "blocks": blocks,
        "patch_size": 4,
        "latent_log_var": "constant",
        "norm_layer": "pixel_norm",
        "base_channels": 8,
        "spatial_padding_mode": "zeros",
    }
    decoder = {
        "in_channels": 128,
        "out_channels": 3,
        "patch_size": 4,
        "head_dim": 16,
        "stage_channels": [128, 64, 32, 32, 16],
        "stage_depths": [1, 1, 1, 1, 2],
        "stage_kernels": [[3, 3, 3]] * 5,
        "upsamples": [[[1, 2, 2], 2], [[2, 1, 1], 2], [[2, 2, 2], 1], [[2, 2, 2], 2]],
        "stage5_kernel": [3, 3, 3],
        "t_emb_dim": 32,
        "timestep_scale_multiplier": 1000.0,
        "default_num_inference_steps": 1,
    }
    return {
        "vae": {
            "_class_name": "CausalDiffusionVAE",
            "dims": 3,
            "model_output_type": "x0",
            "encoder": encoder,
            "decoder": decoder,
        }
    }
