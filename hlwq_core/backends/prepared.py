"""`decode` of a backend that has a `prepare`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def decode_with(prepare: Callable[..., Callable[[torch.Tensor, bool], object]]) -> Callable[..., torch.Tensor]:
    """A function with the arguments of `eager.decode`, the last two by name, and its result."""

    def decode(*packed: Any, out: torch.Tensor | None = None, accumulate: bool = False) -> torch.Tensor:
        if out is None:
            codes, *_, in_features, dtype = packed
            out = torch.empty((codes.shape[0], in_features), dtype=dtype, device=codes.device)
        prepare(*packed)(out, accumulate)
        return out

    return decode
