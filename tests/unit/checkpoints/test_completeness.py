"""What a model of no known family lacks, as its blocks tell; and configs that are no configs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import hlwq_core
from hlwq_core.checkpoints.completeness import missing_in_blocks, whole
from hlwq_core.models import ltx23
from hlwq_core.tools.quantize import quantize


def test_layers_of_another_make_at_regular_distances_lack_nothing() -> None:
    """Gemma 4: every sixth layer takes its keys for values."""
    names = [f"model.layers.{n}.self_attn.{x}.weight" for n in range(48) for x in ("q_proj", "k_proj", "v_proj")]
    lean = [name for name in names if not ("v_proj" in name and int(name.split(".")[2]) % 6 == 5)]
    assert missing_in_blocks(lean) == []
    lost = "model.layers.7.self_attn.v_proj.weight"
    assert missing_in_blocks([name for name in names if name != lost]) == [lost]
    side_by_side = [name for name in names if not ("v_proj" in name and 9 <= int(name.split(".")[2]) < 12)]
    assert len(missing_in_blocks(side_by_side)) == 3


@pytest.mark.parametrize(
    "transformer",
    [{"num_layers": "48"}, {"num_layers": 10**9}, {"num_layers": -1}, {"connector_num_layers": [8]}, ["x"], 7, None],
    ids=str,
)
def test_a_config_of_another_kind_is_named(tmp_path: Path, transformer: object) -> None:
    """Nothing that stands in a file's metadata makes a traceback, or a list of a billion names."""
    name = "model.diffusion_model.transformer_blocks.0.audio_attn1.to_q"
    tensors = {f"{name}.weight": torch.randn(256, 256), f"{name}.bias": torch.zeros(256)}
    tensors["model.diffusion_model.transformer_blocks.0.attn1.to_gate_logits.bias"] = torch.zeros(8)
    config = json.dumps(ltx23.config() | {"transformer": transformer})
    save_file(tensors, tmp_path / "dense.safetensors", {"config": config})
    quantize(tmp_path / "dense.safetensors", tmp_path / "made.safetensors", layout="single", rules="plain")
    found = whole(hlwq_core.open_checkpoint(tmp_path / "made.safetensors"))
    assert not found.complete and found.error is not None and "config" in found.error.what and found.error.fix
    assert not hlwq_core.inspect(tmp_path / "made.safetensors").complete
