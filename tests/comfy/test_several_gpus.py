"""HLWQ Several GPUs with real processes, on the processor: the same latents, and what becomes of them when one fails."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from .test_lora import lora_on, with_lora
from .test_splitting import CASES, KEY, plain, sampled

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def model(load):
    return load()[0]


@pytest.fixture(scope="module")
def several(model):
    """The model on two processes."""
    from comfyui_hlwq.nodes import several_gpus
    from comfyui_hlwq.nodes.parallel import session

    made, report = several_gpus.on_several(model, "cpu,cpu")
    assert "cpu, cpu" in report
    yield made
    session.close_all()


def current():
    from comfyui_hlwq.nodes.parallel import session

    return session._sessions[0]


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def soon(what, seconds=60):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if what():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("case", CASES)
def test_sampling_is_the_same(model, several, distance, case):
    made = CASES[case]()
    assert distance(sampled(several, made), sampled(model, made)) < 1e-5
    assert current()._exchange.sent > 0


def test_a_lora_before_or_behind_the_node(model, several, distance):
    tensors, _ = lora_on(model, KEY, size=0.5)
    expected = sampled(with_lora(model, tensors), plain())
    assert distance(sampled(with_lora(several, tensors), plain()), expected) < 1e-5
    assert distance(sampled(several, plain()), sampled(model, plain())) < 1e-5
    assert distance(expected, sampled(model, plain())) > 1e-3


def test_the_model_without_the_node_is_as_it_was(model, several):
    before = sampled(model, plain())
    sampled(several, plain())
    assert all(map(torch.equal, sampled(model, plain()), before))


def test_one_card_is_the_model_without_the_node(model):
    from comfyui_hlwq.nodes import several_gpus

    made, report = several_gpus.on_several(model, "all")
    assert "one card" in report and not any(made.wrappers.get("outer_sample", {}).values())
    assert all(map(torch.equal, sampled(made, plain()), sampled(model, plain())))


def test_cancel_stops_all_and_the_next_prompt_works(model, several, distance):
    import comfy.model_management as management

    expected = sampled(model, plain())
    pid = current()._workers[0].pid

    def stop(step, *_):
        if step == 1:
            management.interrupt_current_processing()

    begun = time.monotonic()
    with pytest.raises(management.InterruptProcessingException):
        sampled(several, plain(), callback=stop)
    assert time.monotonic() - begun < 15 and not gone(pid)
    assert distance(sampled(several, plain()), expected) < 1e-5 and current()._workers[0].pid == pid


def test_cancel_while_other_cards_load_is_told_at_once_and_the_next_run_waits_for_them(pack, tmp_path, monkeypatch):
    """They answer one thing after the other: until a card has its weights, it does not say that the run has ended."""
    from comfyui_hlwq.nodes import compat
    from comfyui_hlwq.nodes.parallel import session

    monkeypatch.setattr(session, "ENDING", 0.3)
    monkeypatch.setattr(session.recorded_blocks, "release", lambda model: 0)
    told = []
    made = session.Session.__new__(session.Session)
    worker = SimpleNamespace(rank=1, send=told.append, kill=lambda: None, end=lambda: None, last_heard=1e18)
    vars(made).update(
        cards=[SimpleNamespace(device=torch.device("cpu"), memory=0)] * 2, _workers=[worker], _changed=threading.Condition(),
        _asked=0, _answers={}, _error=None, _closed=False, _groups=SimpleNamespace(abort=lambda: None), _folder=tmp_path,
        _patches=None, _beginning=None, _ending=None, _split_of=lambda inner: SimpleNamespace(installed=contextlib.nullcontext),
        _forwards=lambda inner: contextlib.nullcontext(),
    )  # fmt: skip
    patcher = SimpleNamespace(model=SimpleNamespace(diffusion_model=None), patches={}, patches_uuid=1, attachments={})
    with pytest.raises(compat.InterruptProcessingException), made.sampling(patcher, [1]):
        raise compat.InterruptProcessingException
    assert not made.is_over and [message["do"] for message in told] == ["begin", "end"]
    made._beginning[1].touch()  # the patches that were written for it

    def answer():
        time.sleep(0.6)  # more than the end of a run that had begun may take
        for message in told[:2]:
            made._heard(worker, {"number": message["number"], "loaded": 1, "size": 1})
        while len(told) < 4:
            time.sleep(0.01)
        made._heard(worker, {"number": told[3]["number"]})

    threading.Thread(target=answer, daemon=True).start()
    with made.sampling(patcher, [1]):
        assert [message["do"] for message in told] == ["begin", "end", "begin"]
        assert not list(tmp_path.iterdir())
    assert not made.is_over and made._ending is None


def test_an_error_of_the_samplers_own_leaves_the_processes(model, several, distance):
    pid = current()._workers[0].pid

    def fail(step, *_):
        raise ValueError("of the preview")

    with pytest.raises(ValueError, match="of the preview"):
        sampled(several, plain(), callback=fail)
    assert distance(sampled(several, plain()), sampled(model, plain())) < 1e-5 and not gone(pid)


def killed(model, monkeypatch):
    pid = current()._workers[0].pid
    return lambda step: os.kill(pid, signal.SIGKILL), "rank 1, cpu.*SIGKILL"


def worker_that_fails(model, monkeypatch):
    session = current()
    return lambda step: session._tell({"do": "what_it_cannot"}), "rank 1, cpu.*what_it_cannot"


def worker_without_memory(model, monkeypatch):
    """What such a process says."""
    session = current()
    said = {"failed": "forward: OutOfMemoryError: too little", "out_of_memory": True}
    return lambda step: session._heard(session._workers[0], said), "rank 1, cpu.*OutOfMemoryError.*video smaller"


def leader_without_memory(model, monkeypatch):
    def raise_memory(step):
        block = model.model.diffusion_model.transformer_blocks[1]
        monkeypatch.setattr(block.attn2, "forward", out_of_memory)

    def out_of_memory(*args, **kwargs):
        raise torch.OutOfMemoryError("too little")

    return raise_memory, "rank 0, cpu.*OutOfMemoryError"


@pytest.mark.parametrize("how", [killed, worker_that_fails, worker_without_memory, leader_without_memory])
def test_what_fails_is_named_and_the_next_prompt_works(model, several, distance, monkeypatch, how):
    import comfy.model_management as management
    from comfyui_hlwq.nodes.parallel.errors import RankError

    sampled(several, plain())
    folder, pid = current()._folder, current()._workers[0].pid
    times = []
    with monkeypatch.context() as context:
        act, name = how(model, context)

        def at_step_1(step, *_):
            if step == 1:
                times.append(time.monotonic())
                act(step)

        with pytest.raises(RankError, match=f"(?s){name}") as caught:
            sampled(several, plain(), steps=6, callback=at_step_1)
        assert time.monotonic() - times[0] < 15
    assert management.is_oom(caught.value) == ("without_memory" in how.__name__)
    assert soon(lambda: gone(pid) and not folder.exists())
    assert distance(sampled(several, plain()), sampled(model, plain())) < 1e-5


def patch_replaced(model):
    model.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", "double_block", 0)
    return "patches_replace of dit, set by .*test_several_gpus"


def object_patch(model):
    model.add_object_patch("diffusion_model.patchify_proj", torch.nn.Identity())
    return "object patch diffusion_model.patchify_proj"


def attention(model):
    model.model_options.setdefault("transformer_options", {})["optimized_attention_override"] = lambda f, *a, **k: f(
        *a, **k
    )
    return "the attention, set by .*test_several_gpus"


def compiled(model):
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    set_torch_compile_wrapper(model, backend="eager", keys=["diffusion_model"])
    return "torch.compile"


def function_patch(model):
    weight = torch.zeros(1)
    model.patches["diffusion_model.patchify_proj.weight"] = [(1.0, ("diff", (weight,)), 1.0, None, lambda w: w)]
    return "a function of .*test_several_gpus"


@pytest.mark.parametrize("set_on", [patch_replaced, object_patch, attention, compiled, function_patch])
def test_what_cannot_be_split_is_refused_by_name(several, set_on):
    from comfyui_hlwq.hlwq_core.errors import UnsupportedError

    changed = several.clone()
    name = set_on(changed)
    steps = []
    with pytest.raises(UnsupportedError, match=name):
        sampled(changed, plain(), callback=lambda step, *_: steps.append(step))
    assert not steps


def test_cards_that_are_not_there_are_named(model):
    from comfyui_hlwq.hlwq_core.errors import InputError
    from comfyui_hlwq.nodes import several_gpus

    with pytest.raises(InputError, match="no NVIDIA card"):
        several_gpus.on_several(model, "0,1")


def test_only_our_models(reference_model):
    from comfyui_hlwq.hlwq_core.errors import UnsupportedError
    from comfyui_hlwq.nodes import several_gpus

    with pytest.raises(UnsupportedError, match="HLWQ's loaders"):
        several_gpus.on_several(reference_model, "cpu,cpu")


def test_the_processes_go_with_the_model(load):
    import comfy.model_management
    from comfyui_hlwq.nodes import several_gpus

    model = load()[0]
    made, _ = several_gpus.on_several(model, "cpu,cpu")
    pid = current()._workers[0].pid
    comfy.model_management.unload_all_models()
    del model, made
    assert soon(lambda: gone(pid))


def test_the_other_processes_run_as_was_chosen_last(model, several, monkeypatch):
    """Another mode or recording in the loader leaves the model, and with it the processes, as they are."""
    import dataclasses

    from comfyui_hlwq.nodes.running import as_chosen
    from comfyui_hlwq.nodes.running.choices import DEFAULT

    sampled(several, plain())
    session, told = current(), []
    tell = session._tell
    monkeypatch.setattr(session, "_tell", lambda message, **own: told.append(message) or tell(message, **own))
    otherwise = several.clone()
    as_chosen.give(otherwise, dataclasses.replace(DEFAULT, record_blocks=False, attention="comfyui"))
    for patcher, record in ((otherwise, False), (several, True), (otherwise, False)):
        told.clear()
        sampled(patcher, plain())
        (begun,) = [message["choices"] for message in told if message["do"] == "begin"]
        assert begun["record_blocks"] == record and current() is session


def test_a_process_runs_as_it_is_told(load, monkeypatch):
    import contextlib
    import dataclasses

    from comfyui_hlwq.hlwq_core import backends
    from comfyui_hlwq.nodes.parallel.worker import Worker
    from comfyui_hlwq.nodes.running.choices import DEFAULT

    monkeypatch.setattr(backends, "choose_fast", lambda device: ("int8", None))
    patcher = load()[0]
    worker = Worker(None, patcher)
    worker._split = type("Split", (), {"installed": lambda self: contextlib.nullcontext()})()
    kinds = []
    for mode in ("fast", "exact", "fast"):
        choices = dataclasses.asdict(dataclasses.replace(DEFAULT, mode=mode))
        worker.begin({"shape": [1, 128, 2, 4, 4], "choices": choices, "patches": None, "file": ""})
        kinds.append({getattr(module, "eight_bit", None) for module in patcher.model.modules()} - {None})
        worker._patcher.cleanup()
    assert kinds == [{"int8"}, set(), {"int8"}]
