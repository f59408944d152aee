"""The rotation: a normalized 128-point Walsh-Hadamard transform, block by block."""

from __future__ import annotations

import functools
import math

import torch

from .sizes import BLOCK


@functools.lru_cache(maxsize=16)
def hadamard(device: str = "cpu", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The normalized Hadamard matrix in natural (Sylvester) order, `[128, 128]`: symmetric, its own inverse."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while h.shape[0] < BLOCK:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)), 0)
    return (h / math.sqrt(BLOCK)).to(device, dtype)


def rotate(x: torch.Tensor) -> torch.Tensor:
    """Rotate the last dimension block by block; applying it twice gives `x` back.

    Args:
        x: floating `[..., n · 128]`.

    Returns:
        The same shape and dtype.
    """
    blocks = x.reshape(-1, BLOCK)
    return (blocks @ hadamard(str(x.device), x.dtype)).reshape(x.shape)
