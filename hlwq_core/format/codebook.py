"""Codebooks: the levels that codes stand for. They are constants, because files do not store them.

Lloyd-Max for N(0, 1) with 2**bits levels, exactly 100 rounds from uniform boundaries on [-4, 4]. A hundred rounds do
not converge at 5 bits, and published files were written with the unconverged tables: computing better ones would break
decoding (relative error power 0.0029 → 0.0425). Two versions exist in the author's sources:

- `infinite`: outer boundaries at ±∞ (outermost level ±3.55161 at 5 bits): the quantizer and the utilities;
- `finite`: outer boundaries fixed at ±4 (±3.42314): KV cache, transformers integration, notebooks' exports.
"""

from __future__ import annotations

import functools
import hashlib
import math
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..errors import UnsupportedError
from .sizes import BLOCK

SQRT_BLOCK = math.sqrt(BLOCK)
# The likeliest first. A codebook is a name here and a file of that name: float32 `[2**bits]` by its bits, ascending.
VERSIONS = ("infinite", "finite")

_DATA = Path(__file__).parents[1] / "data" / "codebooks"
_stored: dict[str, torch.Tensor] = {}


@functools.lru_cache(maxsize=16)
def _constants(version: str) -> dict[str, torch.Tensor]:
    return load_file(_DATA / f"{version}.safetensors")


@functools.lru_cache(maxsize=64)
def centroids(bits: int, version: str = "infinite") -> torch.Tensor:
    """The codebook of a version.

    Args:
        bits: 2 to 8.
        version: one of `VERSIONS`.

    Returns:
        float32 `[2**bits]`, ascending, for coordinates of unit variance. Do not write into it.
    """
    if version not in VERSIONS:
        raise UnsupportedError(
            "unknown codebook version", expected=", ".join(VERSIONS), found=version, fix="take one of these"
        )
    table = _constants(version).get(str(bits))
    if table is None:
        raise UnsupportedError("no codebook for these bits", expected="2 to 8", found=bits, fix="take one of these")
    return table


@functools.lru_cache(maxsize=256)
def scaled_table(codebook: str, bits: int, device: str = "cpu") -> torch.Tensor:
    """The table a decoder looks codes up in: centroids / √128.

    Args:
        codebook: `infinite`, `finite`, or the name that `register_stored` gave.
        bits: bits a code.
        device: where the table shall lie; tables are kept, they are small.

    Returns:
        float32 `[2**bits]` on `device`.
    """
    table = _stored[codebook] if codebook in _stored else centroids(bits, codebook) / SQRT_BLOCK
    return table.to(device)


def register_stored(scaled: torch.Tensor) -> str:
    """Name a codebook that a file carries itself (V4's `ct_scaled`, already divided by √128).

    A table that equals a known version bit for bit, or to float32 rounding, gets that version's name.
    """
    scaled = scaled.detach().to("cpu", torch.float32).clone()
    bits = scaled.numel().bit_length() - 1
    for version in VERSIONS:
        if torch.allclose(scaled * SQRT_BLOCK, centroids(bits, version), rtol=1e-6, atol=1e-7):
            return version
    name = "stored-" + hashlib.sha256(scaled.numpy().tobytes()).hexdigest()[:12]
    _stored[name] = scaled
    return name


def converged(bits: int) -> torch.Tensor:
    """Where Lloyd's rounds would end, float64 `[2**bits]`: to show how far the files' tables are from it.

    Never decode with it. Uses scipy's normal distribution.
    """
    import numpy as np
    from scipy.stats import norm

    levels = centroids(bits, "infinite").double().numpy()
    for _ in range(20000):
        edges = np.concatenate(([-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]))
        mass = norm.cdf(edges[1:]) - norm.cdf(edges[:-1])
        new = (norm.pdf(edges[:-1]) - norm.pdf(edges[1:])) / mass
        if np.abs(new - levels).max() < 1e-9:
            break
        levels = new
    return torch.from_numpy(levels)
