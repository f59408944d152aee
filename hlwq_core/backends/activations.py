"""What activations go through between layers, defined: modulated, gated or through GELU; added up; normed and roped.

A transformer block does each of these in passes of their own over all tokens, and the rotation of fast mode is one more.
Backends may do them in one. The arithmetic is float32 and is rounded once, where a block's own passes round each time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Steps(NamedTuple):
    """One of these, for activations `[rows, columns]`; tensors are of the activations' dtype.

    Attributes:
        factor, shift: `[groups, columns]`: `x · factor + shift`, each for `rows / groups` neighbouring rows.
        gates: `[rows, heads]`: each head's columns times its gate.
        gelu: GELU, as approximated by tanh.
    """

    factor: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    gates: torch.Tensor | None = None
    gelu: bool = False

    def to(self, device: torch.device | str) -> Steps:
        """On another device."""
        factor, shift, gates = (None if part is None else part.to(device) for part in self[:3])
        return Steps(factor, shift, gates, self.gelu)


def apply(x: torch.Tensor, steps: Steps) -> torch.Tensor:
    """The activations `[rows, columns]` after their steps, float32."""
    rows, columns = x.shape
    x = x.float()
    if steps.gelu:
        return torch.nn.functional.gelu(x, approximate="tanh")
    if steps.gates is not None:
        return (x.view(rows, steps.gates.shape[1], -1) * steps.gates.float()[:, :, None]).view(rows, columns)
    if steps.factor is not None and steps.shift is not None:
        groups = steps.factor.shape[0]
        x = x.view(groups, -1, columns) * steps.factor.float()[:, None] + steps.shift.float()[:, None]
    return x.reshape(rows, columns)


def add_product(x: torch.Tensor, other: torch.Tensor, factor: torch.Tensor) -> None:
    """`x += other · factor` in place: `x` and `other` `[rows, columns]`, `factor` `[groups, columns]`."""
    groups, columns = factor.shape
    x.view(groups, -1, columns).addcmul_(other.view(groups, -1, columns), factor[:, None])


def norm_rope(x: torch.Tensor, weight: torch.Tensor, frequencies: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Queries or keys after their norm and their rotary embedding.

    Args:
        x: `[rows, heads · size]`.
        weight: `[heads · size]`, of the root-mean-square norm over all heads.
        frequencies: `[tokens, heads, size / 2, 2, 2]`, a matrix for each column and the one half a head further; rows are
            tokens, over and over.
        epsilon: of the norm.

    Returns:
        As `x`.
    """
    rows, columns = x.shape
    tokens, heads, half = frequencies.shape[:3]
    normed = torch.nn.functional.rms_norm(x.float(), (columns,), weight.float(), epsilon)
    halves = normed.view(-1, tokens, heads, 2, half)
    roped = torch.einsum("thkij,rthjk->rthik", frequencies.float(), halves)
    return roped.reshape(rows, columns).to(x.dtype)
