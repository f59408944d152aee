"""ComfyUI's own choice of attention, by a node or for all models, comes before the pack's."""

from __future__ import annotations

import inspect

import pytest
import torch


@pytest.fixture
def chosen(load, pack):
    """A model in fast mode's attention on which a node has set another one, and the calls of that."""
    import comfy.ldm.modules.attention as core
    from comfyui_hlwq.nodes.running import faster_attention

    calls = []

    def attention(*args, **kwargs):
        calls.append(args[0].shape)
        return inspect.unwrap(core.optimized_attention)(*args, **kwargs)

    model = load()[0]
    faster_attention.use(model, faster_attention.faster_attention)
    clone = model.clone()
    if hasattr(clone, "set_model_optimized_attention"):
        clone.set_model_optimized_attention(attention)
    else:  # before 0.33 nodes did it themselves
        options = clone.model_options["transformer_options"]
        options[faster_attention.KEY] = lambda function, *args, **kwargs: attention(*args, **kwargs)
    return model, clone, calls


def test_a_nodes_attention_is_used(chosen, sample):
    model, clone, calls = chosen
    samples = sample(clone, steps=1)
    assert calls and all(torch.isfinite(part).all() for part in samples)
    calls.clear()
    sample(model, steps=1)
    assert not calls, "the model that the node was given keeps its own"


def recordable(options: dict) -> bool:
    from comfyui_hlwq.hlwq_core.running import cuda_graph
    from comfyui_hlwq.nodes.running import recorded_blocks

    try:
        return recorded_blocks._recordable(options) is not None
    except cuda_graph.Unrecordable:
        return False


def test_blocks_with_a_nodes_attention_are_not_recorded(chosen):
    model, clone, _ = chosen
    assert recordable(model.model_options["transformer_options"])
    assert not recordable(clone.model_options["transformer_options"])


@pytest.mark.parametrize("option", ["stg_self_attn_blocks", "sparse_attention"])
def test_nothing_is_recorded_with_options_that_are_not_known(pack, option):
    """LTX's guidance of single blocks, sparse attention: what blocks might look at is left to core."""
    assert not recordable({option: (1, 2)})
