"""The comparison that a kernel has to pass on a device before it decodes weights there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from ..format.codebook import BLOCK, register_stored
from ..format.packed import PackedLayer
from ..format.packing import pack
from . import eager

ALLOWED = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def random_layer(rows: int, num_blocks: int, bits: int, packing: str, generator: torch.Generator) -> PackedLayer:
    """A weight of any codes that this packing can hold, with a codebook of its own: no two levels are alike."""
    size = (rows, num_blocks * BLOCK)
    codes = pack(torch.randint(0, 1 << bits, size, generator=generator, dtype=torch.uint8), bits, packing)
    norms = (torch.rand(rows, num_blocks, generator=generator) + 0.5).half()
    codebook = register_stored(torch.randn(1 << bits, generator=generator))
    return PackedLayer(codes, norms, bits, packing, codebook, size)


def prove(
    launch: Callable[[PackedLayer, torch.Tensor, bool], object],
    device: torch.device,
    bits: int,
    packing: str,
    dtype: torch.dtype,
    accumulate: bool,
) -> None:
    """Decode a small random layer with a kernel and with eager.

    Args:
        launch: `launch(packed, out, accumulate)`.
        device: where the kernel runs.
        bits, packing, dtype, accumulate: the kernel's variant.

    Raises:
        RuntimeError: the results differ by more than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    rows, num_blocks = 33, 3
    whole = random_layer(rows, num_blocks, bits, packing, generator)
    for in_features in (num_blocks * BLOCK, 2 * BLOCK + 72):
        packed = dataclasses.replace(whole, shape=(rows, in_features))
        before = torch.randn(rows, in_features, generator=generator).to(dtype)
        expected = eager.decode(packed, torch.float32)
        expected += before.float() if accumulate else 0
        found = before.to(device)
        launch(packed.to(device), found, accumulate)
        allowed = float(expected.abs().max()) * ALLOWED[dtype]
        difference = float((found.float().cpu() - expected).abs().max())
        if not difference <= allowed:
            raise RuntimeError(f"its result differs from eager's by {difference:.3g}, {allowed:.3g} are allowed")


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is expected; NaN if either holds one."""
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


def compare(what: str, found: torch.Tensor, expected: torch.Tensor, allowed: float) -> None:
    """Raise where two results differ by more than `allowed`, as a whole. A value at the middle of two levels may round either
    way: few differ, and by a step.

    Raises:
        RuntimeError: with `what` that was.
    """
    difference = relative_difference(found, expected)
    if not difference <= allowed:
        raise RuntimeError(f"{what} differs from its definition by {difference:.3g}, {allowed:.3g} are allowed")
