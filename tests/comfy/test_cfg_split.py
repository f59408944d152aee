"""ComfyUI's MultiGPU CFG Split: positive and negative condition at once, in a thread and with a model of its own each."""

from __future__ import annotations

import threading

import pytest
import torch

from .conftest import joint_latent
from .test_splitting import text

CARDS = [torch.device("cpu"), torch.device("cpu", 0)]  # two names of one device


@pytest.fixture
def sample_at(comfy):
    import comfy.sample

    def sample_at(model, cfg):
        latent = joint_latent(frames=3, size=3)
        noise = comfy.sample.prepare_noise(latent, 0)
        with torch.inference_mode():
            result = comfy.sample.sample(
                model, noise, 3, cfg, "euler", "normal", text(1), text(2), latent, seed=0, disable_pbar=True
            )
        return list(result.unbind())

    return sample_at


@pytest.fixture
def split(comfy, monkeypatch):
    """`split(model)`: the model as the node makes it."""
    import comfy.model_management
    import comfy.multigpu

    monkeypatch.setattr(comfy.model_management, "get_all_torch_devices", lambda exclude_current=False: CARDS)

    def split(model):
        with torch.inference_mode():
            return comfy.multigpu.create_multigpu_deepclones(model, 2)

    return split


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_sampling_is_the_same(load, sample_at, split, distance, monkeypatch, cfg):
    from comfyui_hlwq.nodes.running.packed_ops import PackedOperations

    expected = sample_at(load()[0], cfg)
    threads, run = set(), PackedOperations.Linear.forward

    def forward(self, input):
        threads.add(threading.get_ident())
        return run(self, input)

    monkeypatch.setattr(PackedOperations.Linear, "forward", forward)
    assert distance(sample_at(split(load()[0]), cfg), expected) < 1e-5
    assert len(threads - {threading.get_ident()}) == (2 if cfg > 1 else 1)


def test_nothing_is_recorded_in_its_threads(pack):
    """While one records, torch forbids the whole process to wait for a card."""
    from comfyui_hlwq.hlwq_core.running import cuda_graph
    from comfyui_hlwq.nodes.running import recorded_blocks

    with pytest.raises(cuda_graph.Unrecordable, match="MultiGPU CFG Split"):
        recorded_blocks._recordable({"multigpu_thread_device": torch.device("cpu")})


def test_stretches_without_interruption_may_overlap(pack):
    """The first to begin is not the last to end."""
    import comfy.ops
    from comfyui_hlwq.nodes import compat

    before = comfy.ops.run_every_op, compat.run_every_op
    first, second = compat.uninterrupted(), compat.uninterrupted()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert comfy.ops.run_every_op is not before[0] and compat.run_every_op() is None
    second.__exit__(None, None, None)
    assert (comfy.ops.run_every_op, compat.run_every_op) == before
