"""Packed weights and activations as they look in real models, for the tests of what decodes and multiplies them."""

from __future__ import annotations

import torch

from hlwq_core.codec.codec import encode
from hlwq_core.format.packed import PackedLayer
from hlwq_core.format.packing import PACKINGS
from hlwq_core.format.sizes import BITS

VARIANTS = [(bits, packing) for bits in BITS for packing in PACKINGS if packing != "nibble" or bits <= 4]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# What one rounding to a dtype changes.
STEPS = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}


def layer(rows: int, columns: int, bits: int = 5, packing: str = "msb") -> PackedLayer:
    """A random weight whose blocks differ in size."""
    generator = torch.Generator().manual_seed(rows + columns + bits)
    weight = torch.randn(rows, columns, generator=generator) * (1 + torch.rand(rows, 1, generator=generator))
    weight[:, : columns // 2] *= 0.3
    return encode(weight, bits).layer(packing)


def activations(rows: int, columns: int) -> torch.Tensor:
    """bfloat16 `[rows, columns]` with an outlier channel, as transformers have."""
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns))
    x[:, 3] *= 30
    return x.bfloat16()


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())
