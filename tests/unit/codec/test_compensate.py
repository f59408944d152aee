"""Error compensation: outputs closer to the original's on inputs not seen in the calibration, in an ordinary file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hlwq_core import open_checkpoint
from hlwq_core.codec import codec, compensate
from hlwq_core.codec.compensate import Calibration, output_error, rotated_factor
from hlwq_core.errors import InputError
from hlwq_core.tools.quantize import quantize
from hlwq_core.tools.verify import verify


def inputs(count: int, width: int, seed: int) -> torch.Tensor:
    """Correlated inputs with a loud channel, as transformers have them."""
    mixing = torch.randn(width // 8, width, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, width // 8, generator=generator) @ mixing + torch.randn(count, width, generator=generator)
    x[:, 3] *= 10
    return x


def moments(x: torch.Tensor) -> torch.Tensor:
    return x.T @ x / x.shape[0]


@pytest.mark.parametrize("bits", [3, 5])
@pytest.mark.parametrize("width", [384, 300])
def test_outputs_on_unseen_inputs(bits: int, width: int) -> None:
    weight = torch.randn(128, width, generator=torch.Generator().manual_seed(2)) * 0.02
    seen, unseen = moments(inputs(4096, width, 3)), moments(inputs(4096, width, 4))
    ours = compensate.encode(weight, bits, "infinite", rotated_factor(seen)).decode()
    searched = codec.encode(weight, bits, norms="search").decode()
    assert output_error(weight, ours, unseen) < 0.5 * output_error(weight, searched, unseen)


def test_white_inputs_change_nothing_for_the_worse() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(2))
    ours = compensate.encode(weight, 5, "infinite", rotated_factor(torch.eye(256))).decode()
    searched = codec.encode(weight, 5, norms="search").decode()
    assert float((ours - weight).norm()) == pytest.approx(float((searched - weight).norm()), rel=1e-3)


def test_from_a_run_to_a_file_that_any_reader_takes(tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.GELU(), torch.nn.Linear(512, 256))
    save_file({f"{name}": value.detach() for name, value in model.state_dict().items()}, tmp_path / "dense.safetensors")
    calibration = Calibration({"0.weight": model[0], "2.weight": model[2]})
    with torch.no_grad(), calibration.watching():
        for seed in range(4):
            model(inputs(1024, 256, seed))
    calibration.save(tmp_path / "moments.safetensors")
    assert calibration.samples == {"0.weight": 4096, "2.weight": 4096}
    before = {name: len(layer._forward_pre_hooks) for name, layer in model.named_children()}
    assert not any(before.values()), "the hooks are gone"

    results = {}
    for name, options in {"plain": {}, "calibrated": {"calibration": tmp_path / "moments.safetensors"}}.items():
        quantize(tmp_path / "dense.safetensors", tmp_path / name, rules="plain", norms="search", bits=4, **options)
        checked = verify(tmp_path / name, tmp_path / "dense.safetensors")
        assert checked.ok, checked.problems
        checkpoint = open_checkpoint(tmp_path / name)
        decoded = {n: checkpoint.decode(n, torch.float32) for n in checkpoint.names()}
        assert len(decoded) == 2
        x = inputs(1024, 256, 99)
        with torch.no_grad():
            truth = model(x)
            hidden = torch.nn.functional.gelu(x @ decoded["0.weight"].T + model[0].bias)
            results[name] = float((hidden @ decoded["2.weight"].T + model[2].bias - truth).norm() / truth.norm())
    assert results["calibrated"] < 0.8 * results["plain"], results


def test_moments_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save_file({"a.weight": torch.randn(256, 256)}, tmp_path / "dense.safetensors")
    for name, tensors, match in (
        ("other", {"b.weight": torch.eye(256)}, "no layer of this model"),
        ("narrow", {"a.weight": torch.eye(128)}, "does not fit"),
        ("nan", {"a.weight": torch.full((256, 256), float("nan"))}, "NaN"),
        ("infinite", {"a.weight": torch.eye(256) * float("inf")}, "NaN"),
        ("negative", {"a.weight": -torch.eye(256)}, "no second moments"),
        ("random", {"a.weight": torch.randn(256, 256)}, "no second moments"),
        ("integers", {"a.weight": torch.eye(256, dtype=torch.int64)}, "does not fit"),
        ("flat", {"a.weight": torch.ones(256)}, "does not fit"),
        ("empty", {"a.weight": torch.zeros(0, 0)}, "does not fit"),
        ("nothing", {}, "no layer of this model"),
    ):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(InputError, match=match):
            quantize(
                tmp_path / "dense.safetensors",
                tmp_path / "out",
                rules="plain",
                calibration=tmp_path / f"{name}.safetensors",
            )
    assert not (tmp_path / "out").exists()
    assert list(load_file(tmp_path / "dense.safetensors")) == ["a.weight"]
