"""Encoding and decoding of one weight: HLWQ's quantizer (arXiv 2603.29078) as the author's code does it.

Rows are cut into blocks of 128 (the last one zero-padded). Per block: `r = x · H`, `norm = ‖x‖₂` (at least 1e-10,
stored as float16), `code = nearest level to r · √128 / norm`. Decoding: `w = (level / √128 · H) · norm`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .. import backends
from ..errors import InputError
from ..format.codebook import BLOCK, SQRT_BLOCK, centroids
from ..format.hadamard import hadamard
from ..format.packed import PackedLayer
from ..format.packing import pack
from ..format.sizes import BITS

MIN_NORM = 1e-10


@dataclass(frozen=True)
class Encoded:
    """A weight as codes and norms, not yet packed.

    Attributes:
        codes: uint8 `[out_features, num_blocks · 128]`.
        norms: float16 `[out_features, num_blocks]`.
        bits: bits a code.
        version: the codebook's version.
        in_features: width before padding.
    """

    codes: torch.Tensor
    norms: torch.Tensor
    bits: int
    version: str
    in_features: int

    def packed(self, packing: str = "msb") -> torch.Tensor:
        """The codes as bytes, uint8 `[out_features, row_bytes]`."""
        return pack(self.codes, self.bits, packing)

    def layer(self, packing: str = "msb") -> PackedLayer:
        """The weight as it lies in files."""
        return self._layer(self.packed(packing), packing)

    def _layer(self, codes: torch.Tensor, packing: str) -> PackedLayer:
        shape = self.codes.shape[0], self.in_features
        return PackedLayer(codes, self.norms, self.bits, packing, self.version, shape)

    def decode(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight that a decoder gets back, `[out_features, in_features]`."""
        return backends.decode(self._layer(self.codes, "byte"), dtype, "eager")


def to_blocks(weight: torch.Tensor) -> torch.Tensor:
    """A weight `[out, in]` as float32 blocks `[out, num_blocks, 128]`, zero-padded."""
    out_features, in_features = weight.shape
    padding = -in_features % BLOCK
    return F.pad(weight.float(), (0, padding)).reshape(out_features, -1, BLOCK)


def encode(weight: torch.Tensor, bits: int = 5, version: str = "infinite", norms: str = "author") -> Encoded:
    """Quantize a weight.

    Args:
        weight: floating `[out_features, in_features]`, on any device; all values finite.
        bits: 2, 3, 4, 5, 6 or 8.
        version: codebook version.
        norms: `author` (the block's length; bit-exact with published files) or `search` (the norm with the least
            error, same size and same decoder).

    Raises:
        InputError: the weight is not a finite matrix, or an argument is unknown.
    """
    if weight.dim() != 2:
        raise InputError(
            "only matrices can be quantized", expected="2 dimensions", found=tuple(weight.shape), fix="keep it as it is"
        )
    if bits not in BITS:
        raise InputError(
            "bits that HLWQ has no codebook for",
            expected=", ".join(map(str, BITS)),
            found=bits,
            fix="take one of these",
        )
    if not bool(torch.isfinite(weight).all()):
        raise InputError(
            "the weight has NaN or infinite values",
            expected="finite values",
            found=f"{int((~torch.isfinite(weight)).sum())} of {weight.numel()} that are not",
            fix="quantize from an intact file: verify or download it again",
        )
    if norms == "author":
        codes, block_norms = encode_blocks(to_blocks(weight), bits, version)
    elif norms == "search":
        from .search_norms import encode_blocks as search_blocks

        codes, block_norms = search_blocks(to_blocks(weight), bits, version)
    else:
        raise InputError("unknown way to choose norms", expected="author, search", found=norms, fix="take one of these")
    return Encoded(codes.reshape(weight.shape[0], -1), block_norms, bits, version, weight.shape[1])


def encode_blocks(blocks: torch.Tensor, bits: int, version: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and norms of blocks as the author encodes them.

    Args:
        blocks: float32 `[rows, num_blocks, 128]`.

    Returns:
        Codes uint8 `[rows, num_blocks, 128]` and norms float16 `[rows, num_blocks]`.
    """
    norms = blocks.norm(dim=-1, keepdim=True).clamp(min=MIN_NORM)
    rotated = (blocks / norms) @ hadamard(str(blocks.device)) * SQRT_BLOCK
    return nearest(rotated, bits, version), norms.squeeze(-1).half()


def nearest(values: torch.Tensor, bits: int, version: str) -> torch.Tensor:
    """The code of the nearest level, uint8 of the shape of `values` (float32, unit variance)."""
    levels = centroids(bits, version).to(values.device)
    return torch.bucketize(values, (levels[1:] + levels[:-1]) / 2, out_int32=True).to(torch.uint8)
