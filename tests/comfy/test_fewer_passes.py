"""Fast mode's blocks in fewer passes, in a whole model: what passes are left out, and where none are."""

from __future__ import annotations

import dataclasses
import functools
import logging

import pytest
import torch

from .test_fast_mode import fast_model, flat, long_latent  # noqa: F401  a fixture


@pytest.fixture
def done(monkeypatch, pack):
    """What was done in fewer passes, in order."""
    from comfyui_hlwq.hlwq_core import backends
    from comfyui_hlwq.hlwq_core.backends import activations
    from comfyui_hlwq.hlwq_core.running import pending

    monkeypatch.setattr(pending, "MIN_ROWS", 32)  # the tiny model never has as many rows as pay on a GPU
    found: list[str] = []
    apply, fast_mode = activations.apply, backends.fast_mode

    def steps(x, steps):
        found.append("gelu" if steps.gelu else "gated" if steps.gates is not None else "modulated")
        return apply(x, steps)

    def counted(name, function, *arguments):
        found.append(name)
        return function(*arguments)

    def fast(device, kind):
        made = fast_mode(device, kind)
        names = "add_product", "norm_rope"
        return dataclasses.replace(made, **{n: functools.partial(counted, n, getattr(made, n)) for n in names})

    monkeypatch.setattr(activations, "apply", steps)
    monkeypatch.setattr(backends, "fast_mode", fast)
    return found


@pytest.fixture
def fewer(fast_model, done):  # noqa: F811
    """`fewer(kind)`: the tiny model in fast mode, its blocks in fewer passes."""
    from comfyui_hlwq.nodes.running import faster_attention, fewer_passes

    def make(kind):
        model = fast_model(kind)
        fewer_passes.use(model.model.diffusion_model, kind)
        faster_attention.use(model, faster_attention.faster_attention)
        return model

    return make


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def test_latents_are_those_of_all_passes(fewer, fast_model, sample, done):  # noqa: F811
    expected = flat(sample(fast_model("int8"), steps=1, latent=long_latent()))
    assert not done
    model = fewer("int8")
    found = flat(sample(model, steps=1, latent=long_latent()))
    blocks = len(model.model.diffusion_model.transformer_blocks)
    # A block's video: queries and keys of its own attention, those that meet the sound's; three attentions' heads; what goes
    # into them (since 0.31 ComfyUI norms and modulates in one, but for what meets the text); the residuals.
    for name, least in (("norm_rope", 2), ("gated", 3), ("modulated", 2), ("gelu", 1), ("add_product", 3)):
        assert done.count(name) >= least * blocks, name
    assert cosine(found, expected) > 0.9999


def test_a_lora_is_added_to_what_was_put_off(fewer, fast_model, sample, done):  # noqa: F811
    import comfy.sd

    tensors = {}
    generator = torch.Generator().manual_seed(0)
    for layer in ("attn1.to_q", "ff.net.0.proj", "ff.net.2"):
        name = f"transformer_blocks.0.{layer}"
        module = fast_model("int8").model.diffusion_model.get_submodule(name)
        up = torch.randn(module.out_features, 4, generator=generator) * 0.2
        tensors[f"diffusion_model.{name}.lora_B.weight"] = up
        tensors[f"diffusion_model.{name}.lora_A.weight"] = torch.randn(4, module.in_features, generator=generator) * 0.2
    found = []
    for make in (fast_model, fewer):
        model = make("int8")
        patched = comfy.sd.load_lora_for_models(model, None, tensors, 0.5, 0)[0]
        found.append([flat(sample(m, steps=1, latent=long_latent())) for m in (model, patched)])
    (plain, with_lora), (fewer_plain, fewer_with) = found
    assert "gelu" in done
    assert cosine(fewer_with, with_lora) > 0.9999 > cosine(fewer_with, fewer_plain)


@pytest.mark.parametrize("change", ["forward", "hook", "module"])
def test_where_a_node_changed_a_block_it_runs_as_ever(fewer, sample, done, change, caplog):
    model = fewer("fp8")
    inner = model.model.diffusion_model
    inputs = []

    def seen(forward, x, *others, **options):
        inputs.append(x)
        return forward(x, *others, **options)

    class Wrapped(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *arguments, **options):
            return seen(self.module, *arguments, **options)

    for block in inner.transformer_blocks:
        if change == "module":
            block.attn2 = Wrapped(block.attn2)
        elif change == "hook":
            block.attn2.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
        else:
            block.attn2.forward = functools.partial(seen, block.attn2.forward)
    with caplog.at_level(logging.INFO, "hlwq"):
        sample(model, steps=1, latent=long_latent())
    assert not done and inputs and all(type(x) is torch.Tensor for x in inputs)
    assert "something else works in attn2" in caplog.text


def test_another_attention_gets_tensors(fewer, sample, done):
    """Its kernels are given addresses, not what stands for a tensor."""
    model = fewer("fp8")
    given = []

    def attend(function, *arguments, **options):
        given.extend(arguments[:3])
        return function(*arguments, **options)

    model.model_options["transformer_options"]["optimized_attention_override"] = attend
    sample(model, steps=1, latent=long_latent())
    assert "modulated" in done and "norm_rope" not in done
    assert given and all(type(x) is torch.Tensor for x in given)


def test_the_switch_turns_it_off(fast_model, monkeypatch):  # noqa: F811
    from comfyui_hlwq.nodes.running import fewer_passes

    inner = fast_model("fp8").model.diffusion_model
    kinds = [type(block) for block in inner.transformer_blocks]
    monkeypatch.setenv("HLWQ_FEWER_PASSES", "0")
    fewer_passes.use(inner, "fp8")
    assert [type(block) for block in inner.transformer_blocks] == kinds
    monkeypatch.delenv("HLWQ_FEWER_PASSES")
    fewer_passes.use(inner, "fp8")
    assert all(type(block).__name__ == kinds[0].__name__ for block in inner.transformer_blocks)
    assert [type(block) for block in inner.transformer_blocks] != kinds
