"""Error compensation: codes chosen with what a layer's inputs look like, after GPTQ (arXiv 2210.17323), within the format.

A layer's output error is `(w - ŵ) M (w - ŵ)ᵀ` with `M` the second moments of its inputs, `E[x xᵀ]`. Rotating inputs block by
block as HLWQ rotates weights turns `M` into `R M R`, and the levels can then be chosen column by column: each column's
rounding error is spread over the columns not yet coded, by the Cholesky factor of the inverse moments. Norms are searched
for each block when its turn has come. The file is an ordinary HLWQ file; weights move further from the original's than with
searched norms alone (a lower cosine of weights), outputs closer.

Moments come from a small calibration run (`Calibration`), and lie in a safetensors file: weight name → F32 `[in, in]`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from ..errors import InputError
from ..format.codebook import BLOCK, SQRT_BLOCK, centroids
from ..format.hadamard import hadamard
from ..format.safefile import SafeFile
from ..format.writer import write_safetensors
from .codec import Encoded, to_blocks
from .search_norms import search_scales

# Added to the diagonal, as a part of its mean: moments of few samples are singular.
DAMPING = 0.01


class Calibration:
    """Second moments of the inputs of linear layers, gathered while a model runs.

        calibration = Calibration({"blocks.0.attn.weight": model.blocks[0].attn, …})
        with calibration.watching():
            sample(model)
        calibration.save("moments.safetensors")

    Layers that get the same input tensor (q, k and v) share their moments' memory only in the file's making, not here:
    watch a part of a large model at a time. Works on any device; moments are float32 and lie where the inputs are.
    """

    def __init__(self, layers: Mapping[str, torch.nn.Module]):
        self._layers = dict(layers)
        self.moments: dict[str, torch.Tensor] = {}
        self.samples: dict[str, int] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Gather as long as the context is open."""
        handles = [
            layer.register_forward_pre_hook(lambda module, inputs, name=name: self._gather(name, inputs[0]))
            for name, layer in self._layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _gather(self, name: str, inputs: torch.Tensor) -> None:
        x = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        moments = x.T @ x
        if name in self.moments:
            self.moments[name] += moments
        else:
            self.moments[name] = moments
        self.samples[name] = self.samples.get(name, 0) + x.shape[0]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the mean moments."""
        entries = []
        for name, moments in self.moments.items():
            mean = moments / self.samples[name]
            entries.append((name, torch.float32, tuple(mean.shape), lambda mean=mean: mean))
        write_safetensors(path, entries, {"format": "pt", "hlwq.moments": "1"})


def open_moments(path: str | os.PathLike[str], shapes: Mapping[str, tuple[int, ...]]) -> SafeFile:
    """Open a file of moments and check that it fits the weights of these shapes, `[out, in]` by name.

    Raises:
        InputError: no moments in it, or moments of another width.
    """
    file = SafeFile(Path(path), mapped=False)
    fitting = [name for name in file if name in shapes]
    if not fitting:
        raise InputError(
            "the calibration has no layer of this model",
            file=path,
            expected=next(iter(shapes), None),
            found=next(iter(file), None),
            fix="gather it from the model that is quantized, under its checkpoint's names",
        )
    for name in fitting:
        width = shapes[name][1]
        if file.entries[name].shape != (width, width) or file.entries[name].dtype != "F32":
            raise InputError(
                "the calibration does not fit a layer",
                file=path,
                tensor=name,
                expected=f"F32 {[width, width]}",
                found=f"{file.entries[name].dtype} {list(file.entries[name].shape)}",
                fix="take the moments of this very model, or leave --calibration out",
            )
    return file


def rotated_factor(moments: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    """The upper Cholesky factor of the inverse of the rotated, padded, damped moments, float32 `[n · 128, n · 128]`.

    Args:
        moments: symmetric float `[in, in]`.

    Raises:
        InputError: the moments are not finite, or no moments.
    """
    if not bool(torch.isfinite(moments).all()):
        raise InputError("the calibration has NaN or infinite moments", fix="gather it again")
    width = moments.shape[0]
    padded = -(-width // BLOCK) * BLOCK
    full = torch.zeros(padded, padded, dtype=torch.float64, device=moments.device)
    full[:width, :width] = moments.double()
    h = hadamard(str(moments.device), torch.float64)
    blocks = full.reshape(padded // BLOCK, BLOCK, padded // BLOCK, BLOCK)
    turned = torch.einsum("ij,ajbk,kl->aibl", h, blocks, h).reshape(padded, padded)
    mean = turned.diagonal().mean().clamp(min=1e-30)
    turned.diagonal().add_(damping * mean)
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
    codes, norms = encode_blocks(to_blocks(weight), bits, version, factor)
    return Encoded(codes.reshape(weight.shape[0], -1), norms, bits, version, weight.shape[1])


def encode_blocks(
    blocks: torch.Tensor, bits: int, version: str, factor: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and norms that keep a layer's outputs, as `codec.encode_blocks` returns them.

    Args:
        blocks: float32 `[rows, num_blocks, 128]`, finite.
        factor: of `rotated_factor`, on the same device.

    Returns:
        Codes uint8 `[rows, num_blocks, 128]` and norms float16 `[rows, num_blocks]`.
    """
    rows, num_blocks, _ = blocks.shape
    levels = centroids(bits, version).to(blocks.device)
    edges = (levels[1:] + levels[:-1]) / 2
    rest = (blocks @ hadamard(str(blocks.device))).reshape(rows, -1)
    codes = torch.empty(rows, num_blocks * BLOCK, dtype=torch.uint8, device=blocks.device)
    norms = torch.empty(rows, num_blocks, dtype=torch.float16, device=blocks.device)
    for block in range(num_blocks):
        first, last = block * BLOCK, (block + 1) * BLOCK
        here = rest[:, first:last].clone()
        scale = search_scales(here, bits, version)
        norms[:, block] = (scale * SQRT_BLOCK).half()
        stored = norms[:, block].float() / SQRT_BLOCK
        stored = torch.where(stored > 0, stored, scale)
        errors = torch.empty_like(here)
        inner = factor[first:last, first:last]
        for i in range(BLOCK):
            code = torch.bucketize(here[:, i] / stored, edges, out_int32=True)
            codes[:, first + i] = code.to(torch.uint8)
            error = (here[:, i] - levels[code.long()] * stored) / inner[i, i]
            here[:, i:] -= error[:, None] * inner[i, i:]
            errors[:, i] = error
        rest[:, last:] -= errors @ factor[first:last, last:]
    return codes.reshape(rows, num_blocks, BLOCK), norms


def output_error(original: torch.Tensor, decoded: torch.Tensor, moments: torch.Tensor) -> float:
    """Relative squared error of a layer's outputs over inputs of these moments, in float64."""
    m = moments.double()
    difference = original.double() - decoded.double()
    power = float(((original.double() @ m) * original.double()).sum())
    return float(((difference @ m) * difference).sum()) / power if power else 0.0
