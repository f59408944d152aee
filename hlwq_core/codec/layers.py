"""Encoding a layer of any size: in rounds of rows, and compared with the original as it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..errors import HLWQError, InputError
from ..format.packing import pack, row_bytes
from ..format.sizes import BLOCK
from . import codec
from .calibration import FEWEST, LayerInputs
from .compensate import damping_of, factor_of
from .compensate import encode as encode_compensated
from .fidelity import Fidelity, compare

# Rows are encoded in rounds of so many weights: 16 MB and 256 MB as float32, some ten times that with all temporaries.
_CPU_WEIGHTS = 1 << 22
_GPU_WEIGHTS = 1 << 26

SEARCHED, COMPENSATED = "searched", "compensated"


@dataclass
class EncodedLayer:
    """A layer as it lies in files, and how it compares with the original.

    Attributes:
        codes: packed, uint8 `[out, row_bytes]`, on the CPU.
        norms: float16 `[out, blocks]`, on the CPU.
        fidelity: the comparison with the original weight.
        bias: what is to be added to the layer's bias so that its mean output stays, float32 `[out]`; None where that is not known.
        way: `searched` (or the author's norms) or `compensated`.
        held: the squared error of the outputs on held-out inputs, a part of their power, for each way that was tried.
        known: enough was known of the layer's inputs to be of use.
    """

    codes: torch.Tensor
    norms: torch.Tensor
    fidelity: Fidelity
    bias: torch.Tensor | None = None
    way: str = SEARCHED
    held: dict[str, float] = field(default_factory=dict)
    known: bool = False

    @property
    def kept_searched(self) -> bool:
        """Whether codes for the inputs were made, and were worse."""
        return self.way == SEARCHED and COMPENSATED in self.held


@dataclass
class _Inputs:
    """A layer's inputs on the device, ready for use; all None where nothing is known of them."""

    factor: torch.Tensor | None = None
    mean: torch.Tensor | None = None
    held: torch.Tensor | None = None

    @classmethod
    def of(cls, inputs: LayerInputs | None, has_bias: bool, device: torch.device) -> _Inputs:
        if inputs is None or inputs.count < FEWEST:
            return cls()
        mean = inputs.mean.to(device) if has_bias else None
        held = inputs.held.to(device).float() if inputs.held is not None else None
        factor = None
        if inputs.moments is not None:
            moments = inputs.moments.to(device)
            if mean is not None:
                moments = _without_mean(moments, mean)
                held = held - mean if held is not None else None
            factor = factor_of(moments, damping_of(inputs.count, moments))
        return cls(factor, mean, held)


def _without_mean(moments: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """The covariance: what is left for codes to do where the bias takes up the mean."""
    if moments.dim() == 2:
        return moments - torch.outer(mean, mean)
    blocks = torch.nn.functional.pad(mean, (0, moments.shape[0] * BLOCK - len(mean))).reshape(-1, BLOCK)
    return moments - blocks[:, :, None] * blocks[:, None, :]


class _Made:
    """A layer's codes in one way, as they are made."""

    def __init__(self, rows: int, blocks: int, bits: int, mean: torch.Tensor | None):
        self.codes = torch.empty((rows, row_bytes(blocks, bits, "msb")), dtype=torch.uint8)
        self.norms = torch.empty((rows, blocks), dtype=torch.float16)
        self.fidelity = Fidelity()
        self.bias = None if mean is None else torch.empty(rows)
        self.held_error = 0.0

    def add(self, start: int, part: torch.Tensor, encoded: codec.Encoded, inputs: _Inputs) -> None:
        rows = slice(start, start + part.shape[0])
        decoded = encoded.decode()
        self.fidelity.add(compare(part, decoded))
        self.codes[rows] = pack(encoded.codes, encoded.bits, "msb").cpu()
        self.norms[rows] = encoded.norms.cpu()
        if self.bias is not None and inputs.mean is not None:
            self.bias[rows] = ((part - decoded) @ inputs.mean).cpu()
        if inputs.held is not None:
            self.held_error += float(((part - decoded) @ inputs.held.T).double().square().sum())


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
    inputs: LayerInputs | None = None,
    has_bias: bool = False,
) -> EncodedLayer:
    """Encode one layer in rounds of rows, and compare what a decoder gets with the original.

    Args:
        weight: floating `[out, in]` on the CPU, e.g. a view of a mapped file.
        name, file: for messages.
        told: called with the bytes of the original that were done; may raise.
        inputs: what is known of the layer's inputs: code for the least error of the outputs, but keep searched codes where
            held-out inputs say that those are better.
        has_bias: the layer has a bias, which takes up what the codes do to the mean of the outputs.

    Raises:
        InputError: NaN or infinite weights or moments, or values too large for float16 norms.
    """
    rows, columns = weight.shape
    blocks = -(-columns // BLOCK)
    try:
        known = _Inputs.of(inputs, has_bias, device)
    except InputError as error:
        raise InputError(error.what, tensor=name, expected=error.expected, found=error.found, fix=error.fix) from error
    ways = [SEARCHED] if known.factor is None else [COMPENSATED] if known.held is None else [SEARCHED, COMPENSATED]
    made = {way: _Made(rows, blocks, bits, known.mean) for way in ways}
    power = 0.0
    step = max(1, (_GPU_WEIGHTS if device.type == "cuda" else _CPU_WEIGHTS) // (blocks * BLOCK))
    for start in range(0, rows, step):
        part = weight[start : start + step].to(device).float()
        for way in ways:
            try:
                if way == COMPENSATED:
                    assert known.factor is not None
                    encoded = encode_compensated(part, bits, codebook, known.factor)
                else:
                    encoded = codec.encode(part, bits, codebook, norms if known.factor is None else "search")
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
            made[way].add(start, part, encoded, known)
        if known.held is not None:
            power += float((part @ known.held.T).double().square().sum())
        if told is not None:
            told(part.shape[0] * columns * weight.element_size())
    best = min(ways, key=lambda way: made[way].held_error)
    held = {way: made[way].held_error / power for way in ways} if power else {}
    chosen = made[best]
    used = known.factor is not None or known.mean is not None
    return EncodedLayer(chosen.codes, chosen.norms, chosen.fidelity, chosen.bias, best, held, used)
