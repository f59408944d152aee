"""ModelSave and CheckpointSave write dense BF16 files that core loads again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

KEY = "diffusion_model.transformer_blocks.0.attn1.to_q.weight"


@pytest.fixture
def save(comfy_base: Path, tmp_path: Path, monkeypatch):
    """`save(model, **more) -> Path`, through core's own ModelSave."""
    import comfy.model_management
    from comfy_extras.nodes_model_merging import ModelSave

    def save(model) -> Path:
        node = ModelSave()
        node.output_dir = str(tmp_path)
        with torch.inference_mode():
            node.save(model, "saved/tiny", prompt={"1": {}})
        comfy.model_management.unload_all_models()
        (written,) = tmp_path.rglob("*.safetensors")
        return written

    return save


def test_saves_dense_bf16_and_core_samples_it(load, save, sample, distance, reference_model):

    model = load()[0]
    path = save(model)
    saved, reference = load_file(path), reference_model.model.diffusion_model.state_dict()
    packed = {name for name, value in model.model.diffusion_model.state_dict().items() if hasattr(value, "_qdata")}
    assert len(packed) > 50
    for name in packed:
        weight = saved[f"model.diffusion_model.{name}"]
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight.float(), reference[name].float()), name
    assert {f"model.diffusion_model.{name}" for name in reference} <= set(saved)
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["prompt"]) == {"1": {}}


def test_saves_the_lora_with_it(load, save):
    import comfy.sd
    import comfy.utils

    model = load()[0]
    weight = comfy.utils.get_attr(model.model, KEY).dequantize().float()
    diff = torch.full_like(weight, float(weight.std()))
    patched = comfy.sd.load_lora_for_models(model, None, {KEY.removesuffix(".weight") + ".diff": diff}, 1.0, 0)[0]
    saved = load_file(save(patched))["model." + KEY]
    assert torch.allclose(saved.float(), weight + diff, rtol=1e-2, atol=1e-3)


def test_saves_after_sampling(load, save, sample):
    """A model that is loaded on its device saves as well."""
    model = load()[0]
    sample(model, steps=1)
    assert len(load_file(save(model))) == len(model.model.diffusion_model.state_dict())


def test_merging_reads_packed_weights(load):
    """ModelMergeSimple of a model with itself, half and half, is that model."""
    from comfy_extras.nodes_model_merging import ModelMergeSimple

    model = load()[0]
    with torch.inference_mode():
        (merged,) = ModelMergeSimple().merge(model, load()[0], 0.5)
        weight = merged.patched_weight(KEY)
    assert torch.equal(weight, merged.get_model_object(KEY).dequantize())
