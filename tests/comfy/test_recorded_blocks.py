"""When blocks are recorded and replayed, and that sampling is the same. A stand-in records where there is no GPU: it runs the
blocks in memory of its own at each replay, as a graph does, and only then."""

from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace

import pytest
import torch

from .conftest import TEXT_WIDTH, each_version, joint_latent
from .test_lora import lora_on, with_lora


class StandIn:
    """For cuda_graph.Recording."""

    made: list[StandIn]
    failing: Exception | None = None
    pays_after = 1.0

    def __init__(self, function, structure, leaves, recorded=lambda: None):
        from comfyui_hlwq.hlwq_core.running import cuda_graph

        if StandIn.failing is not None:
            raise StandIn.failing
        self.function, self.structure, self.device = function, structure, leaves[0].device
        self.inputs = [cuda_graph._like(leaf) for leaf in leaves]
        self.replays, self.closed = 0, False
        recorded()
        self.results = self.replay(leaves)
        self.replays = 0
        StandIn.made.append(self)

    def replay(self, leaves):
        from comfyui_hlwq.hlwq_core.running import cuda_graph

        assert not getattr(self, "closed", False)
        for own, leaf in zip(self.inputs, leaves, strict=True):
            cuda_graph._distinct(own).copy_(cuda_graph._distinct(leaf))
        self.replays += 1
        with cuda_graph._while_recording():
            return [part.clone() for part in self.function(*cuda_graph.rebuild(self.structure, self.inputs))]

    def close(self):
        self.closed, self.function = True, None


def record_by_stand_in(monkeypatch) -> None:
    """From now on; `StandIn.made` lists what is recorded."""
    from comfyui_hlwq.hlwq_core.running import cuda_graph
    from comfyui_hlwq.nodes.running import recorded_blocks

    monkeypatch.setattr(cuda_graph, "Recording", StandIn)
    monkeypatch.setattr(recorded_blocks, "DEVICE", "cpu")
    monkeypatch.setattr(StandIn, "made", [], raising=False)
    monkeypatch.setattr(StandIn, "failing", None)
    monkeypatch.setattr(StandIn, "pays_after", 1.0)


@pytest.fixture
def recorded(load, pack, monkeypatch):
    """`recorded()`: the tiny model, its blocks recorded by the stand-in, which `StandIn.made` lists."""
    from comfyui_hlwq.nodes.running import recorded_blocks

    record_by_stand_in(monkeypatch)
    monkeypatch.setenv(recorded_blocks.SWITCH, "0")

    def make():
        with monkeypatch.context() as context:  # what is loaded by `load` is plain
            context.setenv(recorded_blocks.SWITCH, "")
            return load()[0]

    return make


def equal(a, b) -> bool:
    return all(map(torch.equal, a, b))


@each_version
def test_sampling_is_the_same(recorded, load, sample):
    model = recorded()
    found = sample(model, steps=6)
    (recording,) = StandIn.made
    # The first step runs as ever, the second is the recording's own.
    assert recording.replays == 4
    assert equal(found, sample(load()[0], steps=6))


def test_a_recording_outlives_the_run(recorded, load, sample):
    model, plain = recorded(), load()[0]
    for seed in range(3):
        assert equal(sample(model, seed=seed, steps=6), sample(plain, seed=seed, steps=6))
    (recording,) = StandIn.made
    assert recording.replays == 4 + 6 + 6 and not recording.closed


def test_few_steps_are_recorded_when_they_come_again(recorded, load, sample):
    """The official schedule is 8 steps, then 3 at another size: each prompt has as few."""
    model, plain = recorded(), load()[0]
    for run in range(3):
        assert equal(sample(model, seed=run, steps=3), sample(plain, seed=run, steps=3))
        assert len(StandIn.made) == min(run, 1)
    assert StandIn.made[0].replays == 2 + 3


def test_no_more_are_kept_than_so_many(recorded, sample, monkeypatch):
    from comfyui_hlwq.nodes.running import recorded_blocks

    monkeypatch.setattr(recorded_blocks, "MAX_KEPT", 2)
    model = recorded()
    for frames in (2, 3, 2, 4):  # the third run keeps the first recording young
        sample(model, steps=6, latent=joint_latent(frames=frames))
    assert [recording.closed for recording in StandIn.made] == [False, True, False]


UNLOADS = {
    "all models": lambda model: __import__("comfy.model_management").model_management.unload_all_models(),
    "memory asked for": lambda model: model.partially_unload(torch.device("cpu"), 1),
    "detached": lambda model: model.detach(),
}


@pytest.mark.parametrize("how", UNLOADS)
def test_recordings_go_when_comfyui_needs_memory(recorded, load, sample, how):
    model = recorded()
    sample(model, steps=6)
    UNLOADS[how](model)
    assert StandIn.made[0].closed and not model.model.diffusion_model.hlwq_recordings._ready
    assert equal(sample(model, steps=6), sample(load()[0], steps=6))


def _hook(model, calls):
    model.model.diffusion_model.transformer_blocks[0].attn1.register_forward_hook(lambda *a: calls.append(1))


def _forward(model, calls):
    attention = model.model.diffusion_model.transformer_blocks[0].attn1
    forward = attention.forward
    model.add_object_patch(
        "diffusion_model.transformer_blocks.0.attn1.forward", lambda *a, **k: calls.append(1) or forward(*a, **k)
    )


def _submodule(model, calls):
    class Counted(torch.nn.Module):
        def forward(self, x):
            calls.append(1)
            return x

    counted = Counted()
    model.model.diffusion_model.transformer_blocks[0].attn1.to_out[1] = counted
    counted.register_forward_hook(lambda *a: None)


@pytest.mark.parametrize("change", [_hook, _forward, _submodule])
def test_what_blocks_are_made_of_is_compared_in_every_run(recorded, load, sample, change):
    """A node may have changed it between two runs: nothing of the recorded ones would show that."""
    model, calls = recorded(), []
    sample(model, steps=6)
    change(model, calls)
    found = sample(model, steps=6)
    assert len(calls) >= 6 and StandIn.made[0].closed
    assert equal(found, sample(load()[0], steps=6))


def test_who_wraps_a_function_is_seen_behind_its_name(pack):
    import functools

    from comfyui_hlwq.nodes import compat

    @functools.wraps(torch.nn.Linear.forward)
    def wrapper(*args):
        return torch.nn.Linear.forward(*args)

    assert wrapper.__module__.startswith("torch.") and compat.defined_in(wrapper) == __name__
    assert compat.defined_in(torch.nn.Linear(1, 1).forward) == "torch.nn.modules.linear"
    assert compat.defined_in(3) == "builtins"


def test_it_says_whose_change_stands_in_the_way(recorded, sample, caplog):
    caplog.set_level("INFO", "hlwq")
    model = recorded()
    _forward(model, [])
    sample(model, steps=6)
    sample(model, steps=6)
    assert caplog.text.count("run one by one, not as one CUDA graph: the forward of 0.attn1, set by ") == 1
    assert __name__.rpartition(".")[2] in caplog.text and not StandIn.made


def test_another_attention_of_the_whole_comfyui_is_not_overlooked(recorded, sample, monkeypatch):
    """Older packs replace core's function for everybody."""
    import comfy.ldm.modules.attention as core

    model, calls, original = recorded(), [], core.optimized_attention
    sample(model, steps=6)
    monkeypatch.setattr(core, "optimized_attention", lambda *a, **k: calls.append(1) or original(*a, **k))
    sample(model, steps=3)
    assert len(StandIn.made) == 1 and calls and StandIn.made[0].replays == 4


def test_weights_that_were_away_come_back(recorded, load, sample, monkeypatch):
    """As after the text encoder took the card's memory: a step brings them to where they were, then replays go on."""
    from comfyui_hlwq.nodes import compat

    model, steps = recorded(), []
    sample(model, steps=6)
    monkeypatch.setattr(compat.Whereabouts, "unchanged", lambda self: steps.append(1) or len(steps) > 2)
    monkeypatch.setattr(compat.Whereabouts, "came_back", lambda self: len(steps) > 1)
    assert equal(sample(model, steps=6), sample(load()[0], steps=6))
    (recording,) = StandIn.made
    assert recording.replays == 4 + 5 and not recording.closed


def test_weights_that_stay_away_end_a_recording(recorded, load, sample, monkeypatch):
    """They do not fit any more: what a recording holds is memory that they could use."""
    from comfyui_hlwq.nodes import compat

    model = recorded()
    sample(model, steps=6)
    monkeypatch.setattr(compat.Whereabouts, "unchanged", lambda self: False)
    monkeypatch.setattr(compat.Whereabouts, "came_back", lambda self: False)
    monkeypatch.setattr(compat.Whereabouts, "of", lambda *args: None)
    assert equal(sample(model, steps=6), sample(load()[0], steps=6))
    assert len(StandIn.made) == 1 and StandIn.made[0].closed


def test_every_shape_has_its_own(recorded, load, sample):
    model, latent = recorded(), joint_latent(frames=3, audio=7)
    sample(model, steps=6)
    assert equal(sample(model, steps=6, latent=latent), sample(load()[0], steps=6, latent=latent))
    assert len({recording.structure for recording in StandIn.made}) == 2


def test_contents_that_change_between_calls_are_seen(recorded, load, comfy):
    """Two conditions in turn, as with guidance where both together do not fit: one recording, two contents."""
    import comfy.sample
    import comfy.samplers

    latent, texts = joint_latent(), []
    for seed in (1, 2):
        context = torch.randn(1, 128, TEXT_WIDTH, generator=torch.Generator().manual_seed(seed))
        texts.append([[context, {"unprocessed_ltxav_embeds": True, "frame_rate": 25.0}]])

    def one_by_one(args):
        parts = [comfy.samplers.calc_cond_batch(args["model"], [c], args["input"], args["sigma"], args["model_options"])
                 for c in args["conds"]]  # fmt: skip
        return [part[0] for part in parts]

    def guided(model):
        model.model_options["sampler_calc_cond_batch_function"] = one_by_one
        noise = comfy.sample.prepare_noise(latent, 0)
        with torch.inference_mode():
            result = comfy.sample.sample(model, noise, 6, 3.0, "euler", "normal", *texts, latent, disable_pbar=True)
        return list(result.unbind())

    assert equal(guided(recorded()), guided(load()[0]))
    (recording,) = StandIn.made
    assert recording.replays == 10  # of twelve calls the first is plain and the second the recording's own


@pytest.mark.parametrize("steps", [1, 5])
def test_few_steps_are_not_recorded(recorded, sample, steps):
    sample(recorded(), steps=steps)
    assert not StandIn.made


@pytest.mark.parametrize(
    "pays_after, steps, recorded_again",
    # As many steps in three runs, for a size that came again.
    [
        (7.5, 2, False),
        (7.5, 3, True),
        (2, 1, False),
        (2, 2, True),
        (20, 4, False),
        (20, 5, True),
        (float("inf"), 50, False),
    ],
)
def test_what_did_not_pay_is_not_recorded_again(recorded, load, sample, monkeypatch, pays_after, steps, recorded_again):
    monkeypatch.setattr(StandIn, "pays_after", pays_after)
    model = recorded()
    sample(model, steps=6)
    # What is there is used, unless a replay is no faster at all.
    assert [recording.replays for recording in StandIn.made] == [4 if pays_after < float("inf") else 0]
    model.model.diffusion_model.hlwq_recordings.release()
    found = sample(model, steps=steps)
    assert len(StandIn.made) == 1 + recorded_again and equal(found, sample(load()[0], steps=steps))


def test_many_tokens_are_not_recorded(recorded, sample, monkeypatch):
    from comfyui_hlwq.nodes.running import recorded_blocks

    monkeypatch.setattr(recorded_blocks, "MAX_TOKENS", 7)
    sample(recorded(), steps=6)  # 2 · 2 · 2 of video
    assert not StandIn.made


def test_without_memory_nothing_is_recorded(recorded, sample, monkeypatch):
    """What is kept of decoded weights makes room before that."""
    import comfy.model_management
    from comfyui_hlwq.nodes.running import kept_decoded, recorded_blocks

    model, video, asked = recorded(), torch.zeros(1, 8, 256), []
    has_room = model.model.diffusion_model.hlwq_recordings._has_room
    with monkeypatch.context() as context:
        context.setattr(comfy.model_management, "get_free_memory", lambda *args: 0)
        context.setattr(kept_decoded, "give_back", lambda model, device, nbytes: asked.append(nbytes) or 0)
        assert not has_room(video)
        context.setattr(kept_decoded, "give_back", lambda model, device, nbytes: nbytes)
        assert has_room(video)
    assert asked == [recorded_blocks.MEMORY * video.nbytes + comfy.model_management.minimum_inference_memory()]
    asked.clear()
    monkeypatch.setattr(recorded_blocks.Recordings, "_has_room", lambda *args: asked.append(1))
    sample(model, steps=6)
    assert not StandIn.made and len(asked) == 1
    sample(model, steps=6)
    assert len(asked) == 2


@pytest.mark.parametrize("setting, expected", [("", True), ("0", False), ("1", True)])
def test_who_wants_it(load, monkeypatch, setting, expected):
    from comfyui_hlwq.nodes.running import recorded_blocks

    model, without = load()[0].model, load(record_blocks=False)[0].model
    monkeypatch.setenv(recorded_blocks.SWITCH, setting)
    assert not recorded_blocks.wanted(model), "there is no CUDA here"
    monkeypatch.setattr(recorded_blocks, "DEVICE", "cpu")
    assert recorded_blocks.wanted(model) is expected and not recorded_blocks.wanted(without)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert not recorded_blocks.wanted(model)


def test_the_loader_asks(load, monkeypatch):
    from comfyui_hlwq.nodes.running import recorded_blocks

    monkeypatch.setattr(recorded_blocks, "DEVICE", "cpu")
    for setting in ("0", ""):
        monkeypatch.setenv(recorded_blocks.SWITCH, setting)
        model, _, _, report = load()
        inner = model.model.diffusion_model
        assert hasattr(inner, "hlwq_recordings") is (not setting)
        assert ("blocks: replayed as a CUDA graph up to 12,288 video tokens" in report) is (not setting)
        assert type(inner).__name__ == "LTXAVModel"


def test_what_a_node_hangs_into_the_blocks_runs_every_time(recorded, sample):
    calls = []

    def override(function, *args, **kwargs):
        calls.append(1)
        return function(*args, **kwargs)

    model = recorded()
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    sample(model, steps=2)
    once = len(calls) / 2
    sample(model, steps=6)
    assert not StandIn.made and len(calls) == 8 * once


def test_a_replaced_block_runs_every_time(recorded, sample):
    calls = []

    def replacement(args, extra):
        calls.append(1)
        return extra["original_block"](args)

    model = recorded()
    model.set_model_patch_replace(replacement, "dit", "double_block", 0)
    sample(model, steps=6)
    assert not StandIn.made and len(calls) == 6


def test_switches_that_blocks_read_are_part_of_the_recording(recorded, load, sample):
    model, plain = recorded(), load()[0]
    without = {}
    for name, patcher in (("recorded", model), ("plain", plain)):
        patcher.model_options["transformer_options"]["a2v_cross_attn"] = False
        without[name] = sample(patcher, steps=6)
        patcher.model_options["transformer_options"].pop("a2v_cross_attn")
    assert equal(without["recorded"], without["plain"])
    assert equal(sample(model, steps=6), sample(plain, steps=6))
    assert len(StandIn.made) == 2 and not equal(without["plain"], sample(plain, steps=6))


def test_weights_that_moved_end_a_recording(recorded, load, sample, monkeypatch):
    """Other addresses in the middle of sampling, as after an out-of-memory or another model's load."""
    from comfyui_hlwq.nodes import compat

    model = recorded()
    unchanged, looked = compat.Whereabouts.unchanged, []

    def moving(self):
        looked.append(1)
        if len(looked) == 3:
            block = model.model.diffusion_model.transformer_blocks[0]
            block.attn1.q_norm.weight = torch.nn.Parameter(block.attn1.q_norm.weight.clone(), requires_grad=False)
        return unchanged(self)

    monkeypatch.setattr(compat.Whereabouts, "unchanged", moving)
    found = sample(model, steps=8)
    first, second = StandIn.made
    assert first.replays == 1 and second.replays and equal(found, sample(load()[0], steps=8))


@each_version
def test_a_lora_has_its_own_recording(recorded, load, sample):
    model, plain = recorded(), load()[0]
    tensors, _ = lora_on(plain, size=0.2)

    def patched(model, strength):
        return sample(with_lora(model, tensors, strength), steps=6)

    for strength in (0.5, 1.0):
        assert equal(patched(model, strength), patched(plain, strength))
    assert equal(sample(model, steps=6), sample(plain, steps=6))
    assert all(recording.replays for recording in StandIn.made) and len(StandIn.made) == 3


def test_a_failure_leaves_the_blocks_as_they_were(recorded, load, sample, caplog, monkeypatch):
    monkeypatch.setattr(StandIn, "failing", RuntimeError("called a synchronizing CUDA operation"))
    model = recorded()
    assert equal(sample(model, steps=6), sample(load()[0], steps=6))
    assert "run one by one: called a synchronizing CUDA operation" in caplog.text
    monkeypatch.setattr(StandIn, "failing", None)
    sample(model, steps=6)
    assert not StandIn.made


def test_nobody_interrupts_a_recording(recorded, load, sample, monkeypatch):
    """The user's interruption comes between steps: within, what was recorded so far could not be taken back."""
    import comfy.model_management

    model = recorded()
    original = StandIn.__init__

    def interrupted(self, *args):
        comfy.model_management.interrupt_current_processing()
        original(self, *args)

    monkeypatch.setattr(StandIn, "__init__", interrupted)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(model, steps=6)
    monkeypatch.setattr(StandIn, "__init__", original)
    found = sample(model, steps=3)
    assert len(StandIn.made) == 1 and StandIn.made[0].replays == 3 and equal(found, sample(load()[0], steps=3))


def test_weights_that_move_all_the_time_are_not_recorded_all_the_time(recorded, sample, monkeypatch):
    from comfyui_hlwq.nodes import compat

    looked = []
    monkeypatch.setattr(compat.Whereabouts, "unchanged", lambda self: len(looked.append(1) or looked) % 2 == 1)
    monkeypatch.setattr(compat.Whereabouts, "may_come_back", lambda self: False)
    sample(recorded(), steps=20)
    assert len(StandIn.made) == 4 and all(recording.closed for recording in StandIn.made)


def test_a_model_goes_when_nobody_holds_it(recorded, sample):
    """Without waiting for Python's search for garbage: it holds video memory."""
    import gc
    import weakref

    import comfy.model_management

    model = recorded()
    sample(model, steps=6)
    comfy.model_management.unload_all_models()
    inner = weakref.ref(model.model.diffusion_model)
    gc.collect()
    gc.disable()
    try:
        del model
        StandIn.made.clear()
        assert inner() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("allocator, expected", [("cudaMallocAsync", 0), ("native", 1)])
def test_compiled_blocks_are_recorded_where_that_works(recorded, sample, monkeypatch, allocator, expected):
    """As a whole or a part of one. TorchCompileModel makes a new model without dynamic VRAM; here the blocks are wrapped."""
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: allocator)
    model = recorded()
    block = model.model.diffusion_model.transformer_blocks[0]
    block.attn1 = torch.compile(block.attn1, backend="eager")
    torch._dynamo.reset()
    with torch.compiler.set_stance("force_eager"):
        sample(model, steps=6)
    assert len(StandIn.made) == expected


def test_a_model_without_blocks_has_nothing_to_give_back(pack):
    """A text encoder is patched by the same patchers."""
    from comfyui_hlwq.nodes.running import recorded_blocks

    assert recorded_blocks.release(torch.nn.Linear(2, 2)) == 0 and not recorded_blocks.end_run(torch.nn.Linear(2, 2))


def test_scratch_goes_with_the_recordings(recorded, sample):
    """Between runs they hold it anyway; without them nobody does."""
    from comfyui_hlwq.hlwq_core.running import scratch

    model = recorded()
    sample(model, steps=6)
    assert scratch.nbytes(torch.device("cpu"))
    model.detach()
    assert not scratch.nbytes(torch.device("cpu"))


def test_other_models_and_other_versions_are_left_alone(pack):
    from comfyui_hlwq.nodes import compat

    class Another(torch.nn.Module):
        transformer_blocks = ()

        def _process_transformer_blocks(self, x, context, timestep):
            return x

    class Newer(torch.nn.Module):
        transformer_blocks = ()

        def _process_transformer_blocks(
            self, x, context, attention_mask, timestep, pe, transformer_options=None, self_attention_mask=None, **kwargs
        ):
            return [x[0] * kwargs["scale"]]

    for model in (Another(), Newer(), torch.nn.Linear(2, 2)):
        assert not compat.blocks_can_be_recorded(model)


def test_nothing_is_recorded_while_comfyui_compiles_memory(pack, load, sample, monkeypatch):
    """Its compiler lays out anew what is allocated between begin and end: it and a recording were never tried together."""
    import comfy.model_prefetch
    from comfyui_hlwq.nodes import compat

    class Compiled(torch.nn.Module):
        transformer_blocks = ()

        def _process_transformer_blocks(
            self, x, context, attention_mask, timestep, pe, transformer_options=None, self_attention_mask=None, **kwargs
        ):
            return x

        def forward(self, x):
            comfy.model_prefetch.malloc_graph_begin(x.device)

    assert not compat.blocks_can_be_recorded(Compiled())
    assert not compat.memory_is_compiled()
    graphs = {threading.get_ident(): SimpleNamespace(_comfy_active=True)}
    monkeypatch.setattr(comfy.model_prefetch, "MALLOC_GRAPHS", graphs, raising=False)
    assert compat.memory_is_compiled()
    graphs[threading.get_ident()]._comfy_active = False
    assert not compat.memory_is_compiled()


def test_what_lasts_is_kept_from_the_compiler(pack, monkeypatch):
    import comfy.model_prefetch
    from comfyui_hlwq.hlwq_core.running import scratch

    paused = []

    @contextlib.contextmanager
    def pause_malloc_graph():
        paused.append(True)
        yield

    monkeypatch.setattr(comfy.model_prefetch, "pause_malloc_graph", pause_malloc_graph, raising=False)
    scratch.release()
    for _ in range(2):
        scratch.view(2, 3, torch.float32, torch.device("cpu"))
    assert len(paused) == 1
    scratch.release()


def test_kept_weights_are_not_part_of_a_recording(load, pack, monkeypatch):
    """Their memory may be taken at any time; ComfyUI records blocks of some models too."""
    from comfyui_hlwq.hlwq_core.running import cuda_graph

    class Place:
        def take(self, *args):
            raise AssertionError("taken while recording")

    module = load()[0].model.diffusion_model.transformer_blocks[0].attn1.to_q
    module.place = Place()
    x = torch.randn(1, 4, module.in_features).bfloat16()
    with torch.inference_mode(), cuda_graph._while_recording():
        module(x)
    with torch.inference_mode(), pytest.raises(AssertionError):
        module(x)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with torch.inference_mode():
        module(x)
