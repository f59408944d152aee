"""Attention by cuDNN's kernel, through torch: the arithmetic of torch's flash attention, and about twice its speed on Hopper.

Nothing is approximated: bfloat16 in and out, float32 sums, as in torch's own kernels. ComfyUI's core asks for flash
attention first, which torch ships in a version older than Hopper.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..backends import proof

CAPABILITY = (9, 0)
HEAD_SIZES = (64, 128)
# Fewer query-key pairs than these take less time than there is to win.
MIN_PAIRS = 1 << 21
# Relative difference to attention written out in float32: of 16 bits, and of kernels that round queries and keys to 8.
ALLOWED, ALLOWED_IN_8_BITS = 2e-2, 1e-1
# In this order of preference: where cuDNN does not take the shapes, torch's own do.
KERNELS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


@functools.lru_cache(maxsize=16)
def unavailable_reason(device: torch.device) -> str | None:
    """Why `attend` is of no use on `device`; None if it is. Compares it with its definition, once."""
    if device.type != "cuda":
        return f"{device.type} is no CUDA device"
    if torch.version.cuda is None:
        return "this torch has no cuDNN"
    if torch.cuda.get_device_capability(device) < CAPABILITY:
        return "cuDNN's attention is no faster than torch's own before Hopper (compute capability 9.0)"
    try:
        for size in HEAD_SIZES:
            prove(device, size)
    except (RuntimeError, TypeError) as error:  # TypeError: a torch older than 2.6
        return str(error).splitlines()[0]
    return None


def fits(q: torch.Tensor, k: torch.Tensor, heads: int) -> bool:
    """Whether `attend` is faster for queries and keys `[batch, tokens, heads · size]`."""
    return (
        q.dim() == 3
        and q.dtype in (torch.bfloat16, torch.float16)
        and q.shape[-1] // heads in HEAD_SIZES
        and q.shape[1] * k.shape[1] >= MIN_PAIRS
    )


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, scale: float | None = None) -> torch.Tensor:
    """Attention without a mask.

    Args:
        q: `[batch, queries, heads · size]`, bfloat16 or float16.
        k, v: `[batch, keys, heads · size]`.
        heads: number of heads.
        scale: of the products; 1 / √size by default.

    Returns:
        `[batch, queries, heads · size]`.
    """
    batch, queries, width = q.shape
    q, k, v = (part.reshape(batch, -1, heads, width // heads).transpose(1, 2) for part in (q, k, v))
    with sdpa_kernel(KERNELS, set_priority=True):
        result = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)
    return result.transpose(1, 2).reshape(batch, queries, width)


def prove(
    device: torch.device, size: int, function: Callable[..., torch.Tensor] | None = None, allowed: float = ALLOWED
) -> None:
    """Compare an attention with attention written out in float32.

    Args:
        device: where it runs.
        size: of a head.
        function: called as `attend`, which it is by default.
        allowed: relative difference of the results.

    Raises:
        RuntimeError: it differs.
    """
    heads = 4
    generator = torch.Generator(device).manual_seed(0)
    shapes = ((2, 300, heads * size), (2, 520, heads * size), (2, 520, heads * size))
    q, k, v = (torch.randn(shape, generator=generator, device=device).bfloat16() for shape in shapes)
    found = (function or attend)(q, k, v, heads).float()
    q, k, v = (part.float().view(2, -1, heads, size).transpose(1, 2) for part in (q, k, v))
    weights = torch.softmax(q @ k.transpose(-1, -2) * size**-0.5, dim=-1)
    expected = (weights @ v).transpose(1, 2).reshape(found.shape)
    proof.compare("attention", found, expected, allowed)
