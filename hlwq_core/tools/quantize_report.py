"""What `quantize` made, for people and programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..checkpoints import block_means
from ..checkpoints.block_means import Outermost


@dataclass
class Report:
    """What was made. `cosine` and `relative_error` are over all quantized weights, `worst` names the worst layers; `model` is
    the family's name, `holds` its parts that are in it, `absent` those from elsewhere → what to use for them; `outermost` of each layer: see `block_means`."""

    target: str
    layout: str
    recipe: str
    norms: str
    layers: int
    kept: int
    weights: int
    bits_a_weight: float
    bytes_codes: int
    bytes_kept: int
    cosine: float
    relative_error: float
    resumed_chunks: int
    worst: list[tuple[str, float]] = field(default_factory=list)
    model: str = ""
    holds: list[str] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    outermost: dict[str, Outermost] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        """The result for people."""
        lines = [
            f"{self.target}: {self.layers} layers quantized, {self.weights / 1e9:.3f} billion weights, recipe {self.recipe}",
            f"  quantized  {as_size(self.bytes_codes)}  ({self.bits_a_weight:.3f} bits a weight, {self.norms} norms)",
            f"  kept       {as_size(self.bytes_kept)}  ({self.kept} tensors)",
            f"  quality    cosine {self.cosine:.5f}, relative squared error {self.relative_error:.3e}",
        ]
        lines += [f"  worst      {error:.3e}  {name}" for name, error in self.worst[:3]]
        lines += [f"  {line}" for line in block_means.lines(self.outermost.items())]
        if self.model:
            lines.append(f"{self.model}: {', '.join(self.holds)}")
            lines += [f"  not in it: {part}; use {instead}" for part, instead in self.absent.items()]
        return "\n".join(lines)


def as_size(nbytes: int) -> str:
    """Bytes for people, in a column of a table."""
    return f"{nbytes / 1e9:8.3f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:8.3f} MB"
