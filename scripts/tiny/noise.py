"""Seeded values: a tensor's random numbers depend on its name alone, so adding one changes no other."""

from __future__ import annotations

import zlib

import torch


def normal(name: str, *shape: int, std: float = 1.0) -> torch.Tensor:
    """Float32 normal numbers of the given shape, the same for the same name."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator) * std


def smooth_kernel(name: str, shape: tuple[int, ...], noise: float = 0.2) -> torch.Tensor:
    """A convolution's weight `[out, in, *kernel]` that blurs: pictures get shapes, not only grain."""
    window = torch.ones(())
    for size in shape[2:]:
        side = torch.hann_window(size + 2, periodic=False)[1:-1]
        window = window.unsqueeze(-1) * (side / side.sum())
    fan_in = shape[1]
    mix = normal(name, *shape[:2], std=fan_in**-0.5)
    taps = fan_in * window.numel()
    return mix.reshape(*shape[:2], *[1] * window.dim()) * window + normal(name + "+", *shape, std=noise * taps**-0.5)


def tied(weight: torch.Tensor, copies: int, noise: float, name: str) -> torch.Tensor:
    """Make each `copies` neighbouring output channels nearly equal, so that a pixel shuffle stays smooth."""
    base = weight[::copies].repeat_interleave(copies, 0)
    return base + normal(name + "~", *weight.shape, std=noise * float(weight.std()))
