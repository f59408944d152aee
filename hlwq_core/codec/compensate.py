"""Error compensation: codes chosen with what a layer's inputs look like, after GPTQ (arXiv 2210.17323), within the format.

A layer's output error is `(w - ŵ) M (w - ŵ)ᵀ` with `M` the second moments of its inputs, `E[x xᵀ]`, or their covariance where the
layer has a bias that takes up the mean. Rotating inputs block by block as HLWQ rotates weights turns `M` into `R M R`, and the
levels can then be chosen column by column: each column's rounding error is spread over the columns not yet coded, by the
Cholesky factor of the inverse moments. Norms are searched for each block when its turn has come. The file is an ordinary HLWQ
file; weights move further from the original's than with searched norms alone (a lower cosine of weights), outputs closer.

With moments of the blocks of 128 alone errors are spread within each block, and all blocks are coded at once.
"""

from __future__ import annotations

import torch

from ..errors import InputError
from ..format.codebook import BLOCK, SQRT_BLOCK, centroids
from ..format.hadamard import hadamard
from .codec import Encoded, to_blocks
from .search_norms import search_scales

# Added to the diagonal, as a part of its mean: moments of few samples are singular, and follow them too closely. Full moments, which
# say more, want more of it; what was tried is in benchmarks/results/quality.json.
DAMPING = 0.1
_FULL_DAMPING = 0.3
# And so much by the number of inputs that there are for each dimension: neighbouring inputs are alike, so that moments are known
# less well than their number says.
_SAMPLES = 4.0
_FULL_SAMPLES = 1.0


def damping_of(count: int, moments: torch.Tensor) -> float:
    """How much is added to moments of so many inputs.

    Args:
        count: inputs seen.
        moments: of either form, `[blocks, 128, 128]` or full ones, `[in, in]`.
    """
    least, samples = (_FULL_DAMPING, _FULL_SAMPLES) if moments.dim() == 2 else (DAMPING, _SAMPLES)
    return min(1.0, max(least, samples * moments.shape[-1] / count))


def factor_of(moments: torch.Tensor, damping: float) -> torch.Tensor:
    """The factor for moments of either form, see `rotated_factor` and `block_factors`."""
    return rotated_factor(moments, damping) if moments.dim() == 2 else block_factors(moments, damping)


def rotated_factor(moments: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    """The upper Cholesky factor of the inverse of the rotated, padded, damped moments, float32 `[n · 128, n · 128]`.

    Args:
        moments: symmetric float `[in, in]`.

    Raises:
        InputError: the moments are not finite, or no moments.
    """
    width = moments.shape[0]
    padded = -(-width // BLOCK) * BLOCK
    full = torch.zeros(padded, padded, dtype=torch.float64, device=moments.device)
    full[:width, :width] = moments
    h = hadamard(str(moments.device), torch.float64)
    blocks = full.reshape(padded // BLOCK, BLOCK, padded // BLOCK, BLOCK)
    turned = torch.einsum("ij,ajbk,kl->aibl", h, blocks, h).reshape(padded, padded)
    return _factor(turned, damping)


def block_factors(moments: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    """The same for each block by itself, float32 `[n, 128, 128]`, of moments `[n, 128, 128]`."""
    h = hadamard(str(moments.device), torch.float64)
    return _factor(h @ moments.double() @ h, damping)


def _factor(turned: torch.Tensor, damping: float) -> torch.Tensor:
    if not bool(torch.isfinite(turned).all()):
        raise InputError("the calibration has NaN or infinite moments", fix="gather it again")
    diagonal = turned.diagonal(dim1=-2, dim2=-1)
    diagonal.add_(damping * diagonal.mean(-1, keepdim=True).clamp(min=1e-30))
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(turned))
        return torch.linalg.cholesky(inverse, upper=True).float()
    except torch.linalg.LinAlgError as error:
        raise InputError(
            "these are no second moments of a layer's inputs",
            expected="a symmetric matrix without negative eigenvalues",
            found=str(error).split(": ", 1)[-1],
            fix="gather the calibration again",
        ) from error


def encode(weight: torch.Tensor, bits: int, version: str, factor: torch.Tensor) -> Encoded:
    """Quantize a weight `[out, in]` so that its outputs stay; as `codec.encode` but for the factor.

    Raises:
        InputError: the weight is not finite.
    """
    if not bool(torch.isfinite(weight).all()):
        raise InputError(
            "the weight has NaN or infinite values", fix="quantize from an intact file: verify or download it again"
        )
    rotated = to_blocks(weight) @ hadamard(str(weight.device))
    if factor.dim() == 3:
        codes, norms = _code(rotated, factor, bits, version)[:2]
    else:
        codes, norms = _code_in_turn(rotated, factor, bits, version)
    return Encoded(codes.reshape(weight.shape[0], -1), norms, bits, version, weight.shape[1])


def _code_in_turn(
    rotated: torch.Tensor, factor: torch.Tensor, bits: int, version: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """One block after the other, errors spread over all that follow.

    Args:
        rotated: float32 `[rows, num_blocks, 128]`, finite.
        factor: of `rotated_factor`, on the same device.

    Returns:
        Codes uint8 `[rows, num_blocks, 128]` and norms float16 `[rows, num_blocks]`.
    """
    rows, num_blocks, _ = rotated.shape
    rest = rotated.reshape(rows, -1).clone()
    codes = torch.empty(rows, num_blocks, BLOCK, dtype=torch.uint8, device=rotated.device)
    norms = torch.empty(rows, num_blocks, dtype=torch.float16, device=rotated.device)
    for block in range(num_blocks):
        first, last = block * BLOCK, (block + 1) * BLOCK
        inner = factor[first:last, first:last]
        here = rest[:, None, first:last]
        codes[:, block : block + 1], norms[:, block : block + 1], errors = _code(here, inner[None], bits, version)
        rest[:, last:] -= errors[:, 0] @ factor[first:last, last:]
    return codes, norms


# Columns whose errors reach the later ones of their block together: most of the work is then a product of matrices.
_TOGETHER = 16


def _code(
    rotated: torch.Tensor, factors: torch.Tensor, bits: int, version: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Blocks each by itself: codes uint8, norms float16, and the columns' errors that spread to others.

    Args:
        rotated: float32 `[rows, n, 128]`.
        factors: `[n, 128, 128]`, upper triangular.
    """
    levels = centroids(bits, version).to(rotated.device)
    edges = (levels[1:] + levels[:-1]) / 2
    scale = search_scales(rotated.reshape(-1, BLOCK), bits, version).reshape(rotated.shape[:2])
    norms = (scale * SQRT_BLOCK).half()
    stored = norms.float() / SQRT_BLOCK
    stored = torch.where(stored > 0, stored, scale).T.contiguous()
    here = rotated.permute(1, 2, 0).contiguous()  # [n, 128, rows]: a column lies together
    codes = torch.empty(here.shape, dtype=torch.uint8, device=rotated.device)
    errors = torch.empty_like(here)
    for first in range(0, BLOCK, _TOGETHER):
        last = first + _TOGETHER
        for i in range(first, last):
            code = torch.bucketize(here[:, i] / stored, edges, out_int32=True)
            codes[:, i] = code.to(torch.uint8)
            error = (here[:, i] - levels[code] * stored) / factors[:, i, i, None]
            errors[:, i] = error
            if i + 1 < last:
                here[:, i + 1 : last] -= factors[:, i, i + 1 : last, None] * error[:, None]
        if last < BLOCK:
            here[:, last:] -= factors[:, first:last, last:].transpose(1, 2) @ errors[:, first:last]
    return codes.permute(2, 0, 1), norms, errors.permute(2, 0, 1)


def output_error(original: torch.Tensor, decoded: torch.Tensor, moments: torch.Tensor) -> float:
    """Relative squared error of a layer's outputs over inputs of these moments `[in, in]`, in float64."""
    m = moments.double()
    difference = original.double() - decoded.double()
    power = float(((original.double() @ m) * original.double()).sum())
    return float(((difference @ m) * difference).sum()) / power if power else 0.0
