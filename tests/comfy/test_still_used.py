"""What of a loader's choices is changed without reading or moving the weights again, and that nothing is held for it."""

from __future__ import annotations

import gc
import os
import shutil
import weakref
from pathlib import Path

import pytest
import torch

from .conftest import CHECKPOINT
from .test_fast_mode import flat, long_latent

RUNS = (
    {},
    {"mode": "fast"},
    {"attention": "comfyui"},
    {"record_blocks": False},
    {"load_at_once": False},
    {"mode": "fast", "attention": "comfyui"},
)


@pytest.fixture
def folder(comfy_base, tmp_path) -> Path:
    """A checkpoint that no other test holds."""
    return Path(shutil.copytree(Path(comfy_base) / "models" / "hlwq" / CHECKPOINT, tmp_path / "copy"))


@pytest.fixture
def again(pack, folder):
    """`again(**options) -> MODEL`: as the nodes load it."""
    from comfyui_hlwq.nodes.load_checkpoint import load_checkpoint
    from comfyui_hlwq.nodes.running.choices import Choices

    def load(share: bool = True, **options):
        with torch.inference_mode():
            return load_checkpoint(folder, Choices(**options), vaes=False, share=share)[0]

    return load


@pytest.fixture
def int8(pack, monkeypatch):
    """As on a card that multiplies in 8 bits."""
    from comfyui_hlwq.hlwq_core import backends
    from comfyui_hlwq.hlwq_core.running import fast

    monkeypatch.setattr(backends, "choose_fast", lambda device: ("int8", None))
    monkeypatch.setattr(fast, "MIN_ROWS", 32)


def test_how_a_model_runs_is_changed_without_loading_it(again, folder, int8, monkeypatch):
    from comfyui_hlwq.nodes import model_loading

    first = again()
    read = []
    monkeypatch.setattr(model_loading, "state_dict", lambda *args: read.append(args))
    models = [again(**options) for options in RUNS]
    assert not read and all(model.model is first.model for model in models)
    assert all(model is not first for model in models)


@pytest.mark.parametrize(
    "options", [{"pack_rest": True}, {"backend": "eager"}, {"keep_decoded": False}, {"bit_order": "msb"}]
)
def test_what_the_weights_are_is_not(again, options):
    first = again()
    assert again(**options).model is not first.model


def test_a_file_that_changed_is_read(again, folder):
    first = again()
    file = max(folder.rglob("*.safetensors"))
    os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns + 10**9))
    assert again().model is not first.model


def test_each_runs_as_it_was_chosen_and_as_one_loaded_by_itself(again, int8, sample):
    alone = {
        mode: flat(sample(again(share=False, mode=mode), steps=1, latent=long_latent())) for mode in ("exact", "fast")
    }
    assert not torch.equal(alone["exact"], alone["fast"])
    exact, fast = again(), again(mode="fast")
    kinds = [type(block) for block in exact.model.diffusion_model.transformer_blocks]
    for mode, model in (("exact", exact), ("fast", fast), ("fast", fast.clone()), ("exact", exact), ("fast", fast)):
        assert torch.equal(flat(sample(model, steps=1, latent=long_latent())), alone[mode]), mode
    assert [type(block) for block in exact.model.diffusion_model.transformer_blocks] == kinds


def test_attention_is_a_patchers_own(again, pack):
    from comfyui_hlwq.nodes.running import faster_attention

    def override(model):
        return model.model_options["transformer_options"].get(faster_attention.KEY)

    first = again()
    first.model_options["transformer_options"][faster_attention.KEY] = faster_attention.named("sage")
    assert override(again(attention="comfyui")) is None
    assert override(first) is faster_attention.named("sage")
    first.model_options["transformer_options"][faster_attention.KEY] = print  # another node's
    assert override(again(attention="comfyui")) is print


def test_a_lora_of_one_is_none_of_the_other(again, sample):
    import comfy.sd

    first = again()
    weight = first.model.diffusion_model.transformer_blocks[0].attn1.to_q.weight
    up, down = torch.randn(weight.shape[0], 4), torch.randn(4, weight.shape[1])
    name = "diffusion_model.transformer_blocks.0.attn1.to_q"
    lora = {f"{name}.lora_B.weight": up, f"{name}.lora_A.weight": down}
    plain = flat(sample(first, steps=1))
    changed = flat(sample(comfy.sd.load_lora_for_models(first, None, lora, 1.0, 0)[0], steps=1))
    assert not torch.equal(changed, plain)
    assert torch.equal(flat(sample(again(attention="comfyui"), steps=1)), plain)


def test_a_copy_for_another_device_is_loaded_as_the_last_was_chosen(again, int8):
    from comfyui_hlwq.nodes.running import choices

    again()
    model = again(mode="fast")
    load, arguments, *_ = model.cached_patcher_init
    with torch.inference_mode():
        copy = load(*arguments, disable_dynamic=True)
    assert copy.model is not model.model and choices.of(copy.model).mode == "fast"


def test_nothing_is_held(again, sample):
    """The second stays when the first goes; with the last one the model and its weights are gone."""
    first = again()
    second = again(mode="fast")
    sample(second, steps=1)
    model = weakref.ref(first.model)
    del first
    gc.collect()
    third = again(attention="comfyui")
    assert third.model is second.model is model()
    del second, third
    import comfy.model_management

    gc.collect()
    comfy.model_management.cleanup_models_gc()
    comfy.model_management.cleanup_models()
    gc.collect()
    assert model() is None


def test_the_nodes_share(pack, comfy_base):
    from comfyui_hlwq.nodes.load_checkpoint import HLWQLoadCheckpoint
    from comfyui_hlwq.nodes.load_diffusion_model import HLWQLoadDiffusionModel

    with torch.inference_mode():
        first, *_, report = HLWQLoadCheckpoint.execute(CHECKPOINT, attention="comfyui", backend="eager").result
        second, again = HLWQLoadDiffusionModel.execute(CHECKPOINT, attention="auto", backend="eager").result
    assert first.model is second.model
    assert "in memory already" in again and "in memory already" not in report
