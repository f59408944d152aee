"""Core's save nodes write dense files of our models, which core and the pack load again, or refuse before they write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from .conftest import each_version

KEY = "diffusion_model.transformer_blocks.0.attn1.to_q.weight"


@pytest.fixture
def save(comfy_base: Path, tmp_path: Path, monkeypatch):
    """`save(model) -> Path`, through core's own ModelSave; `save(part, …, node=NAME)` through another save node."""
    import comfy.model_management
    from comfy_extras import nodes_model_merging

    def save(*parts, node: str = "ModelSave") -> Path:
        saver = getattr(nodes_model_merging, node)()
        saver.output_dir = str(tmp_path)
        with torch.inference_mode():
            saver.save(*parts, f"saved/{node}", prompt={"1": {}})
        comfy.model_management.unload_all_models()
        (written,) = tmp_path.rglob(f"{node}*.safetensors")
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


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


@each_version
def test_core_loads_it_again_and_samples_the_same(load, save, sample, distance):
    """Core reads depth, heads and rope from the file's metadata: without `config` it builds another model."""
    import comfy.sd

    model = load()[0]
    path = str(save(model))
    for again in (
        comfy.sd.load_diffusion_model(path),
        comfy.sd.load_checkpoint_guess_config(path, output_vae=False, output_clip=False)[0],
    ):
        assert type(again.model) is type(model.model)
        assert distance(sample(again, steps=2), sample(model, steps=2)) < 0.01


def test_the_pack_takes_it_again(load, save, sample, distance, comfy_base):
    """Quantized anew, completed by what ModelSave does not save, and loaded by the pack's own loader."""
    from comfyui_hlwq.hlwq_core.tools.quantize import quantize
    from comfyui_hlwq.hlwq_core.tools.repair import repair

    model = load()[0]
    folder = comfy_base / "models" / "hlwq" / "saved-again-Q5"
    quantize(save(model), folder)
    try:
        repair(folder, comfy_base / "models" / "reference" / "ltx23_tiny_bf16.safetensors")
        again = load(folder.name)[0]
        # The codes are what they were, less BF16's rounding.
        assert distance(sample(again, steps=2), sample(model, steps=2)) < 0.05
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("without_metadata", [False, True])
def test_the_config_is_the_models_and_no_workflow_of_an_earlier_file(load, save, monkeypatch, without_metadata):
    """--disable-metadata leaves the workflow away; the config is a part of the model."""
    import comfy.cli_args

    monkeypatch.setattr(comfy.cli_args.args, "disable_metadata", without_metadata)
    model = load()[0]
    model.model.hlwq_metadata = {
        **model.model.hlwq_metadata,
        "prompt": "old",
        "workflow": "old",
        "hlwq.recipe": "ltx23",
    }
    found = metadata_of(save(model))
    assert "transformer" in json.loads(found["config"])
    assert found.get("prompt") == (None if without_metadata else '{"1": {}}')
    assert "workflow" not in found and "hlwq.recipe" not in found


@pytest.mark.parametrize("part", [1, 2])
def test_saved_vaes_load_again(load, save, part):
    """VAESave: the video VAE's layout and the audio VAE's are in the config as well."""
    import comfy.sd
    import comfy.utils

    vae = load()[part]
    weights, metadata = comfy.utils.load_torch_file(str(save(vae, node="VAESave")), return_metadata=True)
    again = comfy.sd.VAE(sd=weights, metadata=metadata)
    assert type(again.first_stage_model) is type(vae.first_stage_model)
    shape = (1, 128, 2, 2, 2) if part == 1 else (1, 8, 5, 16)
    latent = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(again.decode(latent), vae.decode(latent))


@pytest.mark.parametrize(
    ("text_encoder", "cloned"), [("gemma_3_tiny.safetensors", False), ("gemma-3-tiny-HLWQ-Q5", True)]
)
def test_a_saved_clip_is_a_text_encoder_again(load, save, comfy_base, text_encoder, cloned):
    """Under the names that core's loaders and ours look for; encoded prompts are the same."""
    import nodes
    from comfyui_hlwq.nodes import locations
    from comfyui_hlwq.nodes import text_encoder as loader

    checkpoint = locations.checkpoint("LTX-2.3-tiny-HLWQ-Q5")
    clip = loader.load_text_encoder(comfy_base / "models" / "text_encoders" / text_encoder, checkpoint)
    path = save(clip.clone() if cloned else clip, node="CLIPSave")
    plain = load_file(comfy_base / "models" / "text_encoders" / "gemma_3_tiny.safetensors")
    with safe_open(path, "pt") as file:
        assert set(plain) <= set(file.keys())
    again = loader.load_text_encoder(path, checkpoint)
    with torch.inference_mode():
        (before,), (after,) = (nodes.CLIPTextEncode().encode(one, "a cat playing piano")[0] for one in (clip, again))
    assert float((before[0] - after[0]).norm() / before[0].norm()) < 0.01


@pytest.mark.parametrize(
    ("text_encoder", "whose"), [("gemma_3_tiny.safetensors", "core's"), ("gemma-3-tiny-HLWQ-Q5", "ours")]
)
def test_a_checkpoint_with_the_text_encoder_is_refused(
    load, reference_model, comfy_base, tmp_path, text_encoder, whose
):
    """Core would take LTX-2.3's Gemma in a checkpoint for a T5 and load noise."""
    from comfy_extras.nodes_model_merging import CheckpointSave
    from comfyui_hlwq.hlwq_core.errors import UnsupportedError
    from comfyui_hlwq.nodes import locations
    from comfyui_hlwq.nodes import text_encoder as loader

    model, vae = load()[:2]
    checkpoint = locations.checkpoint("LTX-2.3-tiny-HLWQ-Q5")
    clip = loader.load_text_encoder(comfy_base / "models" / "text_encoders" / text_encoder, checkpoint)
    node = CheckpointSave()
    node.output_dir = str(tmp_path)
    with torch.inference_mode(), pytest.raises(UnsupportedError, match="text encoder") as refused:
        node.save(model if whose == "ours" else reference_model, clip, vae, "all/tiny")
    assert "CLIPSave" in refused.value.fix and "ModelSave" in refused.value.fix
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_other_files_are_written_as_core_writes_them(pack, tmp_path):
    """What is not of ours passes through untouched, metadata and their absence included."""
    import comfy.utils

    tensors = {"a": torch.ones(2), "text_encoders.t5xxl.b": torch.zeros(1)}
    for metadata in (None, {"prompt": "1"}):
        comfy.utils.save_torch_file(tensors, str(tmp_path / "x.safetensors"), metadata=metadata)
        assert metadata_of(tmp_path / "x.safetensors") == (metadata or {})
        assert set(load_file(tmp_path / "x.safetensors")) == set(tensors)


@each_version
def test_saves_the_lora_with_it(load, save):
    import comfy.sd
    import comfy.utils

    model = load()[0]
    weight = comfy.utils.get_attr(model.model, KEY).dequantize().float()
    diff = torch.full_like(weight, float(weight.std()))
    patched = comfy.sd.load_lora_for_models(model, None, {KEY.removesuffix(".weight") + ".diff": diff}, 1.0, 0)[0]
    saved = load_file(save(patched))["model." + KEY]
    assert torch.allclose(saved.float(), weight + diff, rtol=1e-2, atol=1e-3)


@each_version
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
