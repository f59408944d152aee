"""The benchmark of fast mode's error, whole, on a CPU and a tiny encoder: a card's minutes are too few to find out there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
WIDTH, FRAMES = 128, 64


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import quality_card

    return quality_card


def weights() -> dict[str, torch.Tensor]:
    """An encoder's of one layer, by the names of transformers' model; `k_proj` has no bias."""
    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * (shape[-1] if len(shape) > 1 else 100) ** -0.5

    found = {"embed_positions.weight": some(FRAMES // 2, WIDTH)}
    found |= {"conv1.weight": some(WIDTH, 80, 3), "conv2.weight": some(WIDTH, WIDTH, 3)}
    found |= {f"{name}.bias": some(WIDTH) for name in ("conv1", "conv2")}
    for name in ("layers.0.self_attn_layer_norm", "layers.0.final_layer_norm", "layer_norm"):
        found |= {f"{name}.weight": torch.ones(WIDTH), f"{name}.bias": some(WIDTH)}
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        found[f"layers.0.self_attn.{name}.weight"] = some(WIDTH, WIDTH)
        if name != "k_proj":
            found[f"layers.0.self_attn.{name}.bias"] = some(WIDTH)
    found |= {"layers.0.fc1.weight": some(4 * WIDTH, WIDTH), "layers.0.fc1.bias": some(4 * WIDTH)}
    return found | {"layers.0.fc2.weight": some(WIDTH, 4 * WIDTH), "layers.0.fc2.bias": some(WIDTH)}


def test_it_runs_to_its_end(card: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mel = torch.randn(2, 80, FRAMES, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(card.Encoder, "tiny", lambda device: card.Encoder(weights(), mel))
    monkeypatch.setattr(sys, "argv", ["quality_card.py", "--device", "cpu", "--rows", "256", "--columns", "256"])
    monkeypatch.setenv("OUT", str(tmp_path))
    card.main()
    found = json.loads((tmp_path / "quality_card.json").read_text())
    for norms in ("author", "search"):
        for dtype in ("bfloat16", "float16"):
            key = f"hidden_{norms}_{dtype}"
            assert found[f"{key}_unquantized"] < found[f"{key}_exact"] < found[f"{key}_fp8_definition"]
            for kind in ("fp8", "int8"):
                assert found[f"{key}_{kind}_kernels"] == pytest.approx(found[f"{key}_{kind}_definition"], rel=0.02)
    assert found["hidden_search_bfloat16_exact"] < found["hidden_author_bfloat16_exact"]
    assert all(seconds > 0 for seconds in found["layer_256x256"].values()) and found["on"]
