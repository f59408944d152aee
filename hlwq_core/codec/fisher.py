"""What each layer's loss is at each number of bits, by gradients: of models that can be run backward.

The loss rises by `½ · E[g²] · (w - ŵ)²` a weight, summed, where `E[g²]` is the diagonal of the (empirical) Fisher information: the
mean square of the loss's gradient over samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from ..errors import InputError
from . import codec


def losses_by_gradients(
    layers: Mapping[str, torch.nn.Module],
    samples: Iterable[torch.Tensor],
    choices: Sequence[int],
    *,
    norms: str = "search",
    codebook: str = "infinite",
    told: Callable[[str], None] = lambda text: None,
) -> dict[str, dict[int, float]]:
    """By weight name: bits → how much the loss rises.

    Args:
        layers: weight name → linear layer of a model in float32, or whatever its gradients can be trusted in.
        samples: the loss of each, a scalar that can be run backward; made one after the other.
        choices: numbers of bits.

    Raises:
        InputError: no samples, a loss that is not finite, or a layer that no gradient reaches.
    """
    weights = {name: _weight(name, layer) for name, layer in layers.items()}
    squares = {name: torch.zeros(weight.shape, device=weight.device) for name, weight in weights.items()}
    count = 0
    for loss in samples:
        if not bool(torch.isfinite(loss)):
            raise InputError(
                "the loss of a sample is not finite", found=float(loss.detach()), fix="check model and samples"
            )
        for weight in weights.values():
            weight.grad = None
        loss.backward()
        count += 1
        told(f"{count} samples run backward")
        for name, weight in weights.items():
            if weight.grad is not None:
                squares[name] += weight.grad.float().square()
    if not count:
        raise InputError("there are no samples to run backward", fix="give a function that yields losses")
    found: dict[str, dict[int, float]] = {}
    for name, weight in weights.items():
        if not bool(squares[name].any()):
            raise InputError(
                "no gradient reaches a layer", tensor=name, fix="leave it out, or let the loss depend on it"
            )
        told(name)
        dense = weight.detach().float()
        found[name] = {
            bits: float((squares[name] * (dense - codec.encode(dense, bits, codebook, norms).decode()).square()).sum())
            / (2 * count)
            for bits in choices
        }
    return found


def _weight(name: str, layer: torch.nn.Module) -> torch.nn.Parameter:
    weight = layer.weight
    if not isinstance(weight, torch.nn.Parameter) or not weight.is_floating_point() or weight.dim() != 2:
        raise InputError("a layer has no weight that gradients go to", tensor=name, fix="give the dense model")
    weight.requires_grad_(True)
    return weight
