"""Weights of the VAEs, the vocoder and the latent upscalers. Gains were found by trying, then fixed."""

from __future__ import annotations

import math
import re

import torch
from transformers.audio_utils import mel_filter_bank

from .noise import normal, smooth_kernel, tied

VIDEO_CONTRAST = 0.75
VIDEO_LATENT = 3.0
MEL_CONTRAST = 1.5
AUDIO_LATENT = 1.0


def statistics(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Per-channel latent statistics: nearly those of a standard normal."""
    return normal(name, *shape, std=0.1) + (1.0 if "std" in name else 0.0)


def video_vae(name: str, shape: tuple[int, ...], upsamplings: list[int]) -> torch.Tensor:
    """One tensor of the video VAE. `upsamplings`: voxels that each decoder block makes of one (mostly 1)."""
    if "per_channel_statistics" in name:
        return statistics(name, shape)
    if name.endswith("bias"):
        return normal(name, *shape, std=0.05)
    if ".res_blocks." in name or "decoder.conv_in" in name:
        # Only the up- and downsamplings blur: over 18 residual blocks all shapes would melt away.
        weight = normal(name, *shape, std=0.3 * (shape[1] * 27) ** -0.5)
        weight[..., 1, 1, 1] += normal(name + "+", *shape[:2], std=shape[1] ** -0.5)
        return _balanced(weight) * (0.5 if ".conv2." in name else 1.0)
    weight = _balanced(smooth_kernel(name, shape))
    if "decoder.conv_out" in name:
        return VIDEO_CONTRAST * tied(weight, shape[0] // 3, 0.03, name)
    if "encoder.conv_out" in name:
        return VIDEO_LATENT * weight
    block = re.search(r"decoder\.up_blocks\.(\d+)\.conv\.", name)
    if block:
        return tied(weight, upsamplings[int(block[1])], 0.1, name)
    return weight


def _balanced(weight: torch.Tensor) -> torch.Tensor:
    """Sum zero over the input channels: what SiLU adds to all would paint one colour and a frame."""
    return weight - weight.mean(1, keepdim=True)


def diffusion_decoder(name: str, shape: tuple[int, ...], upsamplings: list[int]) -> torch.Tensor:
    """One tensor of LTX-2.5's video decoder: attention, linears, and a last stage that takes noise away.

    Args:
        upsamplings: voxels that each upsampling makes of one.
    """
    if "norm" in name:
        return 1 + normal(name, *shape, std=0.05)
    if name.endswith("scale_shift_table"):
        return normal(name, *shape, std=0.1)
    if name.endswith("bias"):
        return normal(name, *shape, std=0.05)
    weight = normal(name, *shape, std=shape[1] ** -0.5)
    if "decoder.conv_out" in name:
        return VIDEO_CONTRAST * tied(weight, shape[0] // 3, 0.03, name)
    if block := re.search(r"decoder\.upsamples\.(\d+)\.", name):
        return tied(weight, upsamplings[int(block[1])], 0.1, name)
    # What comes of the latent is louder than the noise, and each branch quieter than what it is added to.
    quiet = ("attn.proj", "w_down", "conv_in_x_t", "shared_adaln")
    return weight * (0.3 if any(part in name for part in quiet) else 1.0)


def audio_vae(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """One tensor of the audio VAE (mel spectrogram ↔ latent)."""
    if "per_channel_statistics" in name:
        return statistics(name, shape)
    if name.endswith("bias"):
        # Speech has log-mel values around -4; the decoder's last bias puts the spectrogram there.
        return normal(name, *shape, std=0.05) - (4.0 if "decoder.conv_out" in name else 0.0)
    gain = 0.5 if ".conv2." in name else 1.0
    if "decoder.conv_out" in name:
        gain = MEL_CONTRAST
    elif "encoder.conv_out" in name:
        gain = AUDIO_LATENT
    return gain * smooth_kernel(name, shape, noise=0.7)


def vocoder(name: str, shape: tuple[int, ...], built: torch.Tensor) -> torch.Tensor:
    """One tensor of the vocoder; `built`, what the constructor made, holds the resampling filters."""
    if name.endswith("filter"):
        return built.float()
    if "mel_stft" in name:
        return _mel_stft(name, shape)
    if ".act.alpha" in name or ".act.beta" in name or "act_post.act" in name:
        return normal(name, *shape, std=0.2)
    if name.endswith("bias"):
        return normal(name, *shape, std=0.02)
    if "conv_post" in name:
        # No constant passes: the snake activations are positive on average, sound is not.
        weight = normal(name, *shape, std=(shape[1] * shape[2]) ** -0.5)
        return (0.25 if "bwe" in name else 0.4) * (weight - weight.mean(-1, keepdim=True))
    fan_in = shape[0] * 2 if ".ups." in name else shape[1] * shape[2]
    return normal(name, *shape, std=(0.3 if "resblocks" in name else 0.7) * fan_in**-0.5)


def _mel_stft(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    if name.endswith("mel_basis"):
        banks = mel_filter_bank(
            num_frequency_bins=shape[1],
            num_mel_filters=shape[0],
            min_frequency=0.0,
            max_frequency=8000.0,
            sampling_rate=16000,
            norm="slaney",
            mel_scale="slaney",
        )
        return torch.from_numpy(banks).float().T.contiguous()
    window = shape[-1]
    bins = window // 2 + 1
    angle = 2 * math.pi / window * torch.arange(bins).unsqueeze(1) * torch.arange(window)
    basis = torch.cat((angle.cos(), -angle.sin())) * torch.hann_window(window)
    scale = 1.0 if "forward" in name else 4.0 / (3.0 * window)
    return (basis * scale).unsqueeze(1)


def upscaler(name: str, shape: tuple[int, ...], factor: int) -> torch.Tensor:
    """One tensor of a latent upscaler; `factor` is how many voxels its pixel shuffle makes of one."""
    if "norm" in name:
        return normal(name, *shape, std=0.1) + (1.0 if name.endswith("weight") else 0.0)
    if name.endswith("bias"):
        return normal(name, *shape, std=0.05)
    weight = smooth_kernel(name, shape)
    return tied(weight, factor, 0.3, name) if name.startswith("upsampler.") else weight
