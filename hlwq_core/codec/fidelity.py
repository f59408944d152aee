"""How near a decoded weight is to the original: cosine and relative error, of a tensor or of any set of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass
class Fidelity:
    """Sums over weights, in float64, from which cosine and relative error of any set of layers follow."""

    power: float = 0.0
    error: float = 0.0
    dot: float = 0.0
    decoded: float = 0.0
    weights: int = 0

    def add(self, other: Fidelity) -> None:
        self.power += other.power
        self.error += other.error
        self.dot += other.dot
        self.decoded += other.decoded
        self.weights += other.weights

    @property
    def cosine(self) -> float:
        both = math.sqrt(self.power * self.decoded)
        return self.dot / both if both else float(self.power == self.decoded)

    @property
    def relative_error(self) -> float:
        """‖ŵ - w‖² / ‖w‖²."""
        return self.error / self.power if self.power else (math.inf if self.error else 0.0)


def compare(original: torch.Tensor, decoded: torch.Tensor) -> Fidelity:
    """The sums for one tensor, or some of its rows."""
    a, b = original.double().flatten(), decoded.double().flatten()
    return Fidelity(float(a @ a), float((a - b).square().sum()), float(a @ b), float(b @ b), a.numel())
