"""`decode` of a backend that has a `prepare`."""

from __future__ import annotations

from collections.abc import Callable

import torch


def decode_with(prepare: Callable[..., Callable[[torch.Tensor, bool], object]]) -> Callable[..., torch.Tensor]:
    """A function with the arguments and the result of `eager.decode`."""

    def decode(
        codes: torch.Tensor,
        norms: torch.Tensor,
        table: torch.Tensor,
        bits: int,
        packing: str,
        in_features: int,
        dtype: torch.dtype,
        out: torch.Tensor | None = None,
        accumulate: bool = False,
    ) -> torch.Tensor:
        if out is None:
            out = torch.empty((codes.shape[0], in_features), dtype=dtype, device=codes.device)
        prepare(codes, norms, table, bits, packing, in_features, dtype)(out, accumulate)
        return out

    return decode
