"""Layers hurt by means of their blocks are named, from the codes alone; Gaussian weights never are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hlwq_core.checkpoints.block_means import lines, outermost_of
from hlwq_core.codec.codec import encode
from hlwq_core.format.sizes import BITS
from hlwq_core.tools.inspect import inspect, table
from hlwq_core.tools.quantize import quantize
from hlwq_core.tools.verify import verify


def weight(mean: float, rows: int = 64, width: int = 512, seed: int = 0) -> torch.Tensor:
    """Normally distributed blocks around means of so many deviations, of either sign."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randn(rows, width // 128, 128, generator=generator)
    blocks += mean * torch.randn(rows, width // 128, 1, generator=generator).sign()
    return (blocks * 0.02).reshape(rows, width)


@pytest.mark.parametrize("norms", ["author", "search"])
@pytest.mark.parametrize("bits", BITS)
def test_no_false_alarm_and_none_missed(bits: int, norms: str) -> None:
    for seed in range(5):
        codes = encode(weight(0, seed=seed), bits, norms=norms).codes.reshape(-1, 128)
        assert not outermost_of(codes, bits).notable
        assert not outermost_of(codes[:16], bits).notable, "a small sample"
    for mean in (0.5, 1, 2) if norms == "author" else (1, 2):
        codes = encode(weight(mean), bits, norms=norms).codes.reshape(-1, 128)
        found = outermost_of(codes, bits)
        assert found.notable and found.first > 0.1, (mean, found)


def test_heavy_tails_are_no_means() -> None:
    generator = torch.Generator().manual_seed(1)
    heavy = (
        torch.randn(64, 512, generator=generator) / torch.randn(64, 512, 4, generator=generator).square().mean(2).sqrt()
    )
    for norms in ("author", "search"):
        assert not outermost_of(encode(heavy, 5, norms=norms).codes.reshape(-1, 128), 5).notable


def test_the_tools_name_the_layers(tmp_path: Path) -> None:
    save_file({"good.weight": weight(0), "bad.weight": weight(1.0)}, tmp_path / "dense.safetensors")
    for norms in ("author", "search"):
        report = quantize(tmp_path / "dense.safetensors", tmp_path / norms, norms=norms, rules="plain")
        for text in (report.text(), table(inspect(tmp_path / norms)), verify(tmp_path / norms).text()):
            assert "1 of 2 layers are hurt by block means" in text
            assert "bad.weight" in text.split("hurt by block means")[1]
            assert "good.weight" not in text.split("hurt by block means")[1].split("next:")[0]
    found = inspect(tmp_path / "author")
    assert found.outermost["bad.weight"].first > 0.5 and found.outermost["good.weight"].first < 0.01
    save_file({"good.weight": weight(0)}, tmp_path / "good.safetensors")
    report = quantize(tmp_path / "good.safetensors", tmp_path / "none", rules="plain")
    assert "none hurt by block means" in report.text() and report.to_dict()["outermost"]["good.weight"]["first"] < 0.01


def test_nothing_to_say_of_nothing() -> None:
    assert lines([]) == []
