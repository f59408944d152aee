"""The benchmark of quality, on a model of this file: figures that are known, and the original put back."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import quality
        import quality_models
    finally:
        sys.path.remove(str(BENCHMARKS))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.GELU(), torch.nn.Linear(256, 128))

    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    def batch(seed: int) -> dict[str, torch.Tensor]:
        return {"x": torch.randn(512, 256, generator=torch.Generator().manual_seed(seed)) * torch.linspace(0.1, 3, 256)}

    named = Named()
    layers = {f"{n}.weight": m for n, m in named.named_modules() if isinstance(m, torch.nn.Linear)}
    real = quality_models.Real(
        "small", "error", named, layers, lambda: [batch(i) for i in range(16)], [batch(100)], lambda out, _: out,
        lambda a, b: (float((a - b).square().sum() / a.square().sum()), 1),
        lambda m, inputs: m(**inputs).square().mean(),
    )  # fmt: skip
    return quality.Bench(real), quality.methods


def test_figures_and_the_original_again(bench) -> None:
    made, methods = bench
    before = [parameter.clone() for parameter in made.real.model.parameters()]
    every = methods(made)
    found = {
        name: made.measure(every[name]())
        for name in (
            "author5",
            "search5",
            "bias5",
            "blocks5",
            "full5",
            "fp8",
            "int8_rows",
            "int8_rotated",
            "fisher_4_6",
        )
    }
    assert all(torch.equal(a, b) for a, b in zip(before, made.real.model.parameters()))
    assert found["search5"]["bits"] == pytest.approx(5.125) and found["fisher_4_6"]["bits"] <= 4.6 + 0.125
    assert found["search5"]["weight_mse"] < 0.7 * found["author5"]["weight_mse"]
    assert found["full5"]["end"] < found["search5"]["end"] and found["full5"]["output"] < found["search5"]["output"]
    # Weights of a uniform distribution: rotated ones have tails, hence larger scales.
    assert 2 < found["int8_rotated"]["weight_mse"] / found["int8_rows"]["weight_mse"] < 5
    assert found["full5"]["ways"]["compensated"] >= 1 and 7e-4 / 2 < found["fp8"]["weight_mse"] < 1.5e-3


def test_fast_mode_is_worse_than_exact_and_goes_again(bench) -> None:
    made, methods = bench
    method = methods(made)["search5"]
    exact, fp8 = made.measure(method()), made.measure(method(), "fp8")
    assert fp8["end"] > exact["end"] == made.measure(method())["end"]
