"""Bits where they matter: the fewest under a bound, a mean number by sensitivities or by moments."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hlwq_core.codec.calibration import Calibration
from hlwq_core.errors import HLWQError, InputError
from hlwq_core.tools.bits import CHOICES, allocate, mean_bits_of, output_power, read_losses, save_losses
from hlwq_core.tools.quantize import quantize
from hlwq_core.tools.verify import verify

SHAPES = {"a.weight": (128, 256), "b.weight": (256, 256), "c.weight": (128, 128), "d.weight": (64, 300)}


def losses(seed: int) -> dict[str, dict[int, float]]:
    """Falling with bits, more steeply for some layers."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(len(SHAPES), generator=generator) ** 3 * 10
    return {name: {bits: float(weights[i]) * 4.0**-bits for bits in CHOICES} for i, name in enumerate(SHAPES)}


@pytest.mark.parametrize("mean", [3.0, 3.7, 4.6, 5.5, 8.0])
@pytest.mark.parametrize("seed", range(4))
def test_allocation_is_near_the_best_of_all(seed: int, mean: float) -> None:
    curves = losses(seed)
    found = allocate(SHAPES, curves, mean)
    assert mean_bits_of(found, SHAPES) <= mean + 1e-9

    def loss(plan: dict[str, int]) -> float:
        return sum(curves[name][bits] for name, bits in plan.items())

    every = (dict(zip(SHAPES, bits)) for bits in itertools.product(CHOICES, repeat=len(SHAPES)))
    best = min(loss(plan) for plan in every if mean_bits_of(plan, SHAPES) <= mean + 1e-9)
    # Four layers leave room that one more could have filled; with many layers it is the best but for one of them.
    assert loss(found) <= 2.5 * best
    flat = {name: int(mean) if int(mean) in CHOICES else 6 for name in SHAPES}
    assert loss(found) <= loss(flat) * 1.0001 or mean_bits_of(flat, SHAPES) > mean


def test_loss_that_does_not_fall_in_order() -> None:
    curves = {name: dict(zip(CHOICES, (1.0, 0.99, 0.2, 0.21, 0.0))) for name in SHAPES}
    assert mean_bits_of(allocate(SHAPES, curves, 5.0), SHAPES) == 5.0


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in SHAPES.items()}
    tensors["b.weight"] = (tensors["b.weight"].reshape(256, 2, 128) + 0.03).reshape(256, 256)
    save_file(tensors, tmp_path / "dense.safetensors")
    return tmp_path / "dense.safetensors"


@pytest.mark.parametrize("bound", [2e-3, 6e-3, 4e-4])
def test_the_fewest_bits_under_a_bound(dense: Path, tmp_path: Path, bound: float) -> None:
    report = quantize(dense, tmp_path / "out", rules="plain", norms="search", max_error=bound)
    checked = verify(tmp_path / "out", dense)
    assert checked.ok
    for layer in checked.layers:
        assert layer.relative_error is not None and layer.relative_error <= bound
        assert layer.bits == report.bits[layer.name]
        if layer.bits > 2:
            fewer = quantize(
                dense, tmp_path / "fewer", rules="plain", norms="search", force=True,
                bits={3: 2, 4: 3, 5: 4, 6: 5, 8: 6}[layer.bits],
            )  # fmt: skip
            assert {name: error for name, error in fewer.worst}[layer.name] > bound
    if bound == 2e-3:
        assert report.bits["a.weight"] == 5 and report.bits["b.weight"] > 5 and "bits" in report.text()


def test_bounds_that_cannot_be_met(dense: Path, tmp_path: Path) -> None:
    for bound, match in ((1e-9, "above the bound"), (0.0, "no bound"), (float("nan"), "no bound"), (2.0, "no bound")):
        with pytest.raises(InputError, match=match):
            quantize(dense, tmp_path / "out", rules="plain", max_error=bound)
    assert not (tmp_path / "out").exists()


def test_a_mean_by_a_sensitivity_file(dense: Path, tmp_path: Path) -> None:
    curves = losses(0)
    save_losses(tmp_path / "s.json", curves, "fisher")
    assert read_losses(tmp_path / "s.json") == curves
    report = quantize(dense, tmp_path / "out", rules="plain", mean_bits=4.6, sensitivity=tmp_path / "s.json")
    assert report.bits == allocate(SHAPES, curves, 4.6)
    assert verify(tmp_path / "out", dense).ok


def test_a_mean_by_moments(dense: Path, tmp_path: Path) -> None:
    """The layer whose inputs are loud gets the bits."""
    model = torch.nn.ModuleDict({name[0]: torch.nn.Linear(shape[1], shape[0]) for name, shape in SHAPES.items()})
    calibration = Calibration({f"{name}.weight": layer for name, layer in model.items()}, moments="full")
    with torch.no_grad(), calibration.watching():
        for seed in range(8):
            for name, layer in model.items():
                x = torch.randn(512, layer.in_features, generator=torch.Generator().manual_seed(seed))
                if name == "a":  # what this layer gets wrong is heard: the error's own direction is loud
                    x[:, :4] *= 30
                layer(x)
    calibration.save(tmp_path / "moments.safetensors")
    report = quantize(
        dense, tmp_path / "out", rules="plain", mean_bits=4.6, calibration=tmp_path / "moments.safetensors"
    )
    assert len(set(report.bits.values())) > 1 and report.calibration is not None
    assert mean_bits_of(report.bits, SHAPES) <= 4.6


def test_output_power_of_both_forms() -> None:
    x = torch.randn(512, 300, dtype=torch.float64)
    weight = torch.randn(16, 300)
    moments = (x.T @ x / 512).float()
    expected = float((x @ weight.double().T).square().sum() / 512)
    assert output_power(weight, moments) == pytest.approx(expected, rel=1e-4)
    padded = torch.nn.functional.pad(moments, (0, 84, 0, 84))
    blocks = torch.stack([padded[i : i + 128, i : i + 128] for i in range(0, 384, 128)])
    alone = sum(
        float((x[:, i : i + 128] @ weight[:, i : i + 128].double().T).square().sum() / 512) for i in (0, 128, 256)
    )
    assert output_power(weight, blocks) == pytest.approx(alone, rel=1e-4)


def test_what_cannot_be_used_is_named(dense: Path, tmp_path: Path) -> None:
    good = losses(0)

    def given(change: Any) -> Path:
        save_losses(tmp_path / "s.json", good, "fisher")
        told = json.loads((tmp_path / "s.json").read_text())
        change(told)
        (tmp_path / "s.json").write_text(json.dumps(told))
        return tmp_path / "s.json"

    for change, match, tensor in (
        (lambda t: t["layers"].pop("b.weight"), "lacks a layer", "b.weight"),
        (lambda t: t["layers"]["b.weight"].pop("5"), "cannot be used", "b.weight"),
        (lambda t: t["layers"]["b.weight"].update({"5": float("nan")}), "sensitiv", None),
        (lambda t: t["layers"].update({"b.weight": 3}), "cannot be used", "b.weight"),
        (lambda t: t.pop("layers"), "no sensitivity file", None),
        (lambda t: t.update({"hlwq.sensitivity": "9"}), "no sensitivity file", None),
    ):
        with pytest.raises(HLWQError, match=match) as error:
            quantize(dense, tmp_path / "out", rules="plain", mean_bits=4.6, sensitivity=given(change))
        assert tensor is None or error.value.tensor == tensor
    for options, match in (
        ({"mean_bits": 4.6}, "which layers matter"),
        ({"mean_bits": 9.0, "sensitivity": given(lambda t: None)}, "no choice of bits"),
        ({"max_error": 1e-3, "mean_bits": 4.6}, "do not go together"),
        ({"sensitivity": tmp_path / "s.json"}, "do not go together"),
    ):
        with pytest.raises(InputError, match=match):
            quantize(dense, tmp_path / "out", rules="plain", **options)
    assert not (tmp_path / "out").exists()
