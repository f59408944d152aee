"""What `quantize` made, for people and programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..checkpoints import block_means
from ..checkpoints.block_means import Outermost


@dataclass
class Calibrated:
    """What a calibration was of use for: `compensated` layers; those that kept searched codes because held-out inputs say that they
    are `worse` otherwise; those that it has too little of (`unknown`); corrected `biases`, and layers that have `no_bias`."""

    file: str
    samples: int
    loras: bool
    compensated: int
    worse: list[str]
    unknown: list[str]
    biases: int
    no_bias: list[str]

    def lines(self) -> list[str]:
        """For people."""
        text = [
            f"calibration  {self.file}: {self.samples} runs, LoRAs {'on' if self.loras else 'off'}",
            f"             {self.compensated} layers coded for their inputs, {self.biases} biases corrected",
        ]
        for names, what in (
            (self.worse, "kept searched codes: worse on held-out inputs otherwise"),
            (self.unknown, "not in it, or with too few inputs"),
            (self.no_bias, "have no bias to correct"),
        ):
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                text.append(f"             {len(names)} {what}: {', '.join(names[:3])}{more}")
        return text


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
    bits: dict[str, int] = field(default_factory=dict)
    calibration: Calibrated | None = None

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
        counts = {bits: list(self.bits.values()).count(bits) for bits in sorted(set(self.bits.values()))}
        if len(counts) > 1:
            lines.append("  bits       " + ", ".join(f"{bits}: {count} layers" for bits, count in counts.items()))
        if self.calibration is not None:
            lines += [f"  {line}" for line in self.calibration.lines()]
        lines += [f"  {line}" for line in block_means.lines(self.outermost.items())]
        if self.model:
            lines.append(f"{self.model}: {', '.join(self.holds)}")
            lines += [f"  not in it: {part}; use {instead}" for part, instead in self.absent.items()]
        return "\n".join(lines)


def as_size(nbytes: int) -> str:
    """Bytes for people, in a column of a table."""
    return f"{nbytes / 1e9:8.3f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:8.3f} MB"
