"""What of a loader's choices is changed without reading or moving the weights again, and that nothing is held for it."""

from __future__ import annotations

import gc
import os
import shutil
import weakref
from pathlib import Path

import pytest
import torch

from .conftest import CHECKPOINT, TEXT_WIDTH
from .test_fast_mode import flat, long_latent
from .test_lora import lora_on, with_lora
from .test_recorded_blocks import StandIn, record_by_stand_in

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


def behind_lora(model, bypass: bool = False):
    """Another patcher of the model, with a LoRA."""
    import comfy.sd

    tensors, _ = lora_on(model, size=0.5)
    return (
        comfy.sd.load_bypass_lora_for_models(model, None, tensors, 1.0, 0)[0] if bypass else with_lora(model, tensors)
    )


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
    from comfyui_hlwq.nodes.running import as_chosen, faster_attention
    from comfyui_hlwq.nodes.running.choices import Choices

    def override(model):
        return model.model_options["transformer_options"].get(faster_attention.KEY)

    first = again()
    first.model_options["transformer_options"][faster_attention.KEY] = faster_attention.named("sage")
    assert override(again(attention="comfyui")) is None
    assert override(first) is faster_attention.named("sage")
    first.model_options["transformer_options"][faster_attention.KEY] = print  # another node's
    as_chosen.give(first, Choices(attention="comfyui"))
    assert override(first) is print


def test_a_lora_of_one_is_none_of_the_other(again, sample):
    first = again()
    plain = flat(sample(first, steps=1))
    changed = flat(sample(behind_lora(first), steps=1))
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


def test_what_nodes_do_to_theirs_goes_with_it(again):
    """Core keeps a whole second model in a patcher for hooks, and other packs what they like."""
    first = again()
    mark = torch.nn.Linear(1, 1)
    first.non_dynamic_delegate_model = (mark, ())
    first.model_options["transformer_options"]["theirs"] = True
    held, second = weakref.ref(mark), again(mode="fast")
    assert second.model is first.model and "theirs" not in second.model_options["transformer_options"]
    del first, mark
    gc.collect()
    assert held() is None


@pytest.mark.parametrize("other", ["mode", "LoRA", "bypassed LoRA"])
def test_two_that_sample_together_are_refused_where_they_would_be_one(again, int8, sample, other):
    """Dual Model CFG Guider runs both models in one sampling run: in one memory the second's LoRA would be the first's too."""
    import comfy.sample
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Guider_DualModel

    def pair(one, another):
        context = torch.randn(1, 128, TEXT_WIDTH, generator=torch.Generator().manual_seed(1))
        text = [[context, {"unprocessed_ltxav_embeds": True, "frame_rate": 25.0}]]
        guider = Guider_DualModel(one, another)
        guider.set_conds(text, text)
        guider.set_cfg(3.0)
        latent, euler = long_latent(), comfy.samplers.sampler_object("euler")
        noise = comfy.sample.prepare_noise(latent, 3)
        with torch.inference_mode():
            guider.sample(noise, latent, euler, torch.tensor([1.0, 0.5, 0.0]), disable_pbar=True, seed=3)

    def otherwise(**options):
        model = again(**options, **({"mode": "fast"} if other == "mode" else {}))
        return model if other == "mode" else behind_lora(model, bypass=other != "LoRA")

    model, changed = again(), otherwise()
    with pytest.raises(Exception, match="(?s)two models of one checkpoint together.*keep decoded"):
        pair(model, changed)
    with pytest.raises(Exception, match="(?s)two models of one checkpoint together.*keep decoded"):
        pair(changed, model)
    pair(model, again(attention="comfyui", record_blocks=False))  # that is each forward's own, or makes no difference
    pair(model, otherwise(keep_decoded=False))
    assert torch.isfinite(flat(sample(model, steps=1))).all()


def test_a_calibration_leaves_the_mode_as_it_was_chosen(again, int8, sample, tmp_path):
    """It watches exact layers whatever ran before, and after it the model is its patchers' again."""
    from comfyui_hlwq.nodes import calibrate, compat

    def eight_bit(model):
        return {module.eight_bit for module in model.model.modules() if hasattr(module, "eight_bit")} - {None}

    exact, fast = again(), again(mode="fast")
    alone = flat(sample(exact, steps=1, latent=long_latent()))
    sample(fast, steps=1, latent=long_latent())
    assert eight_bit(fast) == {"int8"}
    gathering = calibrate.Gathering(tmp_path / "moments.safetensors", "blocks", 0)
    watched = compat.around_sampling(exact, "hlwq_calibrate", gathering, calibrate.MARK)
    assert torch.equal(flat(sample(watched, steps=1, latent=long_latent())), alone)
    assert not eight_bit(exact)
    assert torch.equal(flat(sample(exact, steps=1, latent=long_latent())), alone)


def test_compiled_blocks_are_made_fast_inside(again, int8):
    """Another pack's node has put torch.compile's in their place, and takes them out again."""
    from comfyui_hlwq.nodes.running import fewer_passes

    model = again()
    blocks = model.model.diffusion_model.transformer_blocks
    plain = blocks[0]
    blocks[0] = torch.compile(plain, backend="eager")
    again(mode="fast")
    blocks[0] = plain
    assert isinstance(plain, fewer_passes._FewerPasses)


@pytest.fixture
def stand_in(pack, monkeypatch):
    """Blocks are recorded by the stand-in, which `StandIn.made` lists."""
    record_by_stand_in(monkeypatch)


def test_recordings_go_with_what_they_were_made_for(again, int8, sample, stand_in):
    held = again()
    sample(held, steps=6)
    fast = again(mode="fast")
    assert [recording.closed for recording in StandIn.made] == [True]
    found = flat(sample(fast, steps=6, latent=long_latent()))
    assert torch.equal(found, flat(sample(again(share=False, mode="fast"), steps=6, latent=long_latent())))


def test_each_mode_learns_for_itself_what_pays(again, int8, sample, stand_in, monkeypatch):
    monkeypatch.setattr(StandIn, "pays_after", float("inf"))
    held = again()
    sample(held, steps=6)
    monkeypatch.setattr(StandIn, "pays_after", 1.0)
    sample(again(mode="fast"), steps=6)
    assert [recording.closed for recording in StandIn.made] == [True, False]


def test_what_could_not_be_recorded_is_tried_again_when_it_runs_otherwise(again, int8, sample, stand_in, monkeypatch):
    monkeypatch.setattr(StandIn, "failing", RuntimeError("no memory"))
    held = again()
    sample(held, steps=6)
    monkeypatch.setattr(StandIn, "failing", None)
    sample(held, steps=6)
    assert not StandIn.made
    sample(again(mode="fast"), steps=6)
    assert len(StandIn.made) == 1


def test_recordings_go_where_the_model_is_compiled_meanwhile(again, sample, stand_in):
    """ComfyUI asks for their memory, or the loader has them switched off, while torch.compile's module stands for the model."""
    from comfyui_hlwq.nodes.running import recorded_blocks

    model = again()
    sample(model, steps=6)
    plain = model.model.diffusion_model
    model.model.diffusion_model = torch.compile(plain, backend="eager")
    assert recorded_blocks._of(model.model)._ready
    again(record_blocks=False)
    model.model.diffusion_model = plain
    assert [recording.closed for recording in StandIn.made] == [True]


@pytest.mark.parametrize("failing", ["error", "interrupt"])
def test_after_a_run_that_failed_another_patcher_runs(again, sample, failing):
    """What a run notes of the model goes with the run."""
    import comfy.model_management as management

    model = again()
    expected = flat(sample(behind_lora(model), steps=1))

    def fail(*args, **kwargs):
        raise management.InterruptProcessingException() if failing == "interrupt" else RuntimeError("theirs")

    broken = model.clone()
    broken.set_model_unet_function_wrapper(fail)
    with pytest.raises((RuntimeError, management.InterruptProcessingException)):
        sample(broken, steps=1)
    assert torch.equal(flat(sample(behind_lora(model), steps=1)), expected)
