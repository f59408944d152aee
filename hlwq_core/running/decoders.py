"""What decodes one packed tensor again and again, its launch prepared once; kept with the tensor."""

from __future__ import annotations

import torch

from .. import backends
from ..backends.eight_bit import EightBit
from . import scratch
from .packed_tensor import HLWQTensor, layer_of
from .pending import Pending


class ScratchDecoder:
    """Decodes one packed weight into its device's scratch buffer.

    Args:
        weight: the packed tensor.
        dtype: of the result.

    Attributes:
        shape, dtype, device: of the result.
    """

    __slots__ = ("_run", "device", "dtype", "shape")

    def __init__(self, weight: HLWQTensor, dtype: torch.dtype):
        packed = layer_of(weight)
        self.shape, self.dtype, self.device = packed.shape, dtype, packed.codes.device
        self._run = backends.choose(self.device, weight._params.backend).prepare(packed, dtype)

    def __call__(
        self, low_rank: tuple[torch.Tensor, torch.Tensor] | None = None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The weight `[out, in]`, valid until the next layer is decoded.

        Args:
            low_rank: `up [out, rank]` and `down [rank, in]` of `dtype`; their product is added before the result is rounded.
            out: where to decode it to instead of the scratch buffer.
        """
        if out is None:
            out = scratch.view(*self.shape, self.dtype, self.device)
        if low_rank is None:
            self._run(out, False)
        else:
            torch.mm(*low_rank, out=out)
            self._run(out, True)
        return out


def scratch_decoder(weight: HLWQTensor, dtype: torch.dtype) -> ScratchDecoder:
    """The decoder of a packed tensor, kept with it: it goes when the tensor's memory does."""
    decoder = weight.__dict__.get("_decoder")
    if decoder is None or decoder.dtype is not dtype:
        with scratch.lasting():
            decoder = weight._decoder = ScratchDecoder(weight, dtype)
    return decoder


class EightBitDecoder:
    """As ScratchDecoder, but to 8 bits, still rotated (see backends/eight_bit.py).

    Args:
        weight: the packed tensor.
        kind: `fp8` or `int8`.

    Attributes:
        rows, padded, kind, device: of the result.
        multiply: as `Fast.multiply`, on this device.
    """

    __slots__ = ("_rotate", "_rotate_after", "_run", "device", "kind", "multiply", "padded", "rows")

    def __init__(self, weight: HLWQTensor, kind: str):
        packed = layer_of(weight)
        self.rows, self.padded = packed.shape[0], packed.padded
        self.kind, self.device = kind, packed.codes.device
        fast = backends.fast_mode(self.device, kind)
        self._rotate, self._rotate_after = fast.rotate, fast.rotate_after
        self.multiply, self._run = fast.multiply, fast.prepare(packed)

    def __call__(self, out: EightBit | None = None) -> EightBit:
        """The weight `[out, padded]`, in the scratch buffer (valid until the next layer is decoded) unless told where to."""
        if out is None:
            out = scratch.eight_bit(self.rows, self.padded, self.kind, self.device)
        self._run(out)
        return out

    def rotate(self, x: torch.Tensor | Pending, dense: bool = False) -> EightBit:
        """Activations `[..., in]` in 8 bits, `[rows, padded]`, for the product with this weight and others of its width.

        Args:
            x: the activations; what was put off is done in the same pass.
            dense: whether somebody else will read them too.
        """
        if isinstance(x, Pending):
            if x.steps is not None and self._rotate_after is not None:
                return x.rotate(self._rotate_after, dense)
            x = x.tensor()
        return self._rotate(x.reshape(-1, x.shape[-1]))


def eight_bit_decoder(weight: HLWQTensor, kind: str) -> EightBitDecoder:
    """The 8-bit decoder of a packed tensor, kept with it: it goes when the tensor's memory does."""
    decoder = weight.__dict__.get("_eight_bit_decoder")
    if decoder is None or decoder.kind != kind:
        with scratch.lasting():
            decoder = weight._eight_bit_decoder = EightBitDecoder(weight, kind)
    return decoder
