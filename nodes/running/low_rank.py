"""LoRAs of a packed weight as one product of two thin matrices, which the decode adds to before it rounds.

For each use of a layer: `up · down` into the scratch buffer, then the decode on top of it in float32. That is one small
matrix product more than without a LoRA, whatever their number, and nothing is rounded twice.
"""

from __future__ import annotations

import operator
from typing import Any

import torch

from .. import compat

# Rows of factors are whole multiples of 32 bytes: the vendor's products take four times as long where they are not, and files
# whose rank differs by layer have any number of rows.
RANK_MULTIPLE = 16


def is_plain(patch: tuple, shape: tuple[int, ...]) -> bool:
    """Whether one of ComfyUI's patches is an up and a down matrix of a weight's shape, added to all of it, and nothing else."""
    _, value, strength_model, offset, function = patch
    if not is_plain_lora(value) or value.weights[3] is not None:
        return False
    if (strength_model, offset, function) != (1.0, None, None):
        return False
    up, down = (tuple(matrix.flatten(start_dim=1).shape) for matrix in value.weights[:2])
    return (up[0], down[1]) == tuple(shape) and up[1] == down[0]


def is_plain_lora(value: Any) -> bool:
    """Whether a patch's value is an up and a down matrix that do not depend on the weight (as DoRA's do)."""
    if not isinstance(value, compat.WeightAdapterBase) or value.name != "lora":
        return False
    _, _, _, _, dora_scale, reshape = value.weights
    return dora_scale is None and reshape is None


class LowRank:
    """The LoRAs of one weight, on the device that uses them.

    Args:
        patches: ComfyUI's patches of the weight, all of them plain (`is_plain`).
        dtype: that the weight is multiplied in.
        device: where the factors shall lie; they are scaled and joined there too.
    """

    def __init__(self, patches: list[tuple], dtype: torch.dtype, device: torch.device):
        self._patches = list(patches)
        ups, downs = [], []
        for strength, value, *_ in patches:
            up, down, alpha, *_ = value.weights
            down = down.to(device).flatten(start_dim=1)
            scale = strength * (1.0 if alpha is None else alpha / down.shape[0])
            ups.append((up.to(device).flatten(start_dim=1).float() * scale).to(dtype))
            downs.append(down.to(dtype))
        if missing := -sum(map(len, downs)) % RANK_MULTIPLE:
            ups.append(ups[0].new_zeros(len(ups[0]), missing))
            downs.append(downs[0].new_zeros(missing, downs[0].shape[1]))
        self.up = torch.cat(ups, dim=1)
        self.down = torch.cat(downs, dim=0)

    @property
    def nbytes(self) -> int:
        """Bytes of the factors."""
        return self.up.nbytes + self.down.nbytes

    def is_of(self, patches: list[tuple]) -> bool:
        """Whether these are the patches that it was made of: the very same, for ComfyUI makes new ones to change one."""
        return len(patches) == len(self._patches) and all(map(operator.is_, patches, self._patches))

    def move_to(self, device: torch.device | None = None) -> int:
        """Move the factors to a device; returns the bytes they take there. ComfyUI calls it as it loads and offloads."""
        if device is None or self.up.device == device:
            return 0
        self.up, self.down = self.up.to(device), self.down.to(device)
        return self.nbytes

    def factors(self, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """`up [out, rank]`, strengths included, and `down [rank, in]`; rank is that of all LoRAs, and zeros up to `RANK_MULTIPLE`."""
        if self.up.device != device:
            self.move_to(device)
        if self.up.dtype is not dtype:
            return self.up.to(dtype), self.down.to(dtype)
        return self.up, self.down

    def delta(self, device: torch.device) -> torch.Tensor:
        """Their product, float32 `[out, in]`."""
        up, down = self.factors(device, torch.float32)
        return up @ down
