"""Encoding a layer of any size: in rounds of rows, and compared with the original as it is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ..errors import HLWQError, InputError
from ..format.codebook import BLOCK
from ..format.packing import pack, row_bytes
from . import codec
from .compensate import encode as encode_compensated
from .compensate import rotated_factor
from .fidelity import Fidelity, compare

# Rows are encoded in rounds of so many weights: 16 MB and 256 MB as float32, some ten times that with all temporaries.
_CPU_WEIGHTS = 1 << 22
_GPU_WEIGHTS = 1 << 26


def encode_layer(
    weight: torch.Tensor,
    bits: int,
    norms: str,
    codebook: str,
    device: torch.device,
    *,
    name: str,
    file: Path | None = None,
    told: Callable[[int], None] | None = None,
    moments: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, Fidelity]:
    """Encode one layer in rounds of rows, and compare what a decoder gets with the original.

    Args:
        weight: floating `[out, in]` on the CPU, e.g. a view of a mapped file.
        name, file: for messages.
        told: called with the bytes of the original that were done; may raise.
        moments: of the layer's inputs, float32 `[in, in]`: code for the least error of the outputs.

    Returns:
        Packed codes uint8 `[out, row_bytes]` and norms float16 `[out, blocks]` on the CPU, and the comparison.

    Raises:
        InputError: NaN or infinite weights or moments, or values too large for float16 norms.
    """
    rows, columns = weight.shape
    blocks = -(-columns // BLOCK)
    codes = torch.empty((rows, row_bytes(blocks, bits, "msb")), dtype=torch.uint8)
    block_norms = torch.empty((rows, blocks), dtype=torch.float16)
    fidelity = Fidelity()
    try:
        factor = rotated_factor(moments.to(device)) if moments is not None else None
    except InputError as error:
        raise InputError(error.what, tensor=name, expected=error.expected, found=error.found, fix=error.fix) from error
    step = max(1, (_GPU_WEIGHTS if device.type == "cuda" else _CPU_WEIGHTS) // (blocks * BLOCK))
    for start in range(0, rows, step):
        part = weight[start : start + step].to(device).float()
        try:
            if factor is None:
                encoded = codec.encode(part, bits, codebook, norms)
            else:
                encoded = encode_compensated(part, bits, codebook, factor)
        except HLWQError as error:
            raise InputError(error.what, file=file, tensor=name, expected=error.expected, fix=error.fix) from error
        if not bool(torch.isfinite(encoded.norms).all()):
            raise InputError(
                "values are too large: a block's norm does not fit into float16",
                file=file,
                tensor=name,
                expected="norms up to 65504",
                fix="keep this layer as it is, by a rule with keep",
            )
        fidelity.add(compare(part, encoded.decode()))
        codes[start : start + step] = pack(encoded.codes, bits, "msb").cpu()
        block_norms[start : start + step] = encoded.norms.cpu()
        if told is not None:
            told(part.shape[0] * columns * weight.element_size())
    return codes, block_norms, fidelity
