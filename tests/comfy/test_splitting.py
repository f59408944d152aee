"""The model's forward by several ranks, each a thread with a model of its own, against the forward of one."""

from __future__ import annotations

import contextlib
import inspect

import pytest
import torch

from tests.ranks.threads import Threads

from .conftest import TEXT_WIDTH, joint_latent
from .test_lora import lora_on, with_lora

KEY = "diffusion_model.transformer_blocks.1.ff.net.2.weight"


@pytest.fixture(scope="module")
def models(load):
    """`models(n)`: as many of the tiny model, each with weights of its own; loaded once."""
    loaded: list = []

    def models(count):
        while len(loaded) < count:
            loaded.append(load()[0])
        return loaded[:count]

    return models


def text(seed, **more):
    context = torch.randn(1, 128, TEXT_WIDTH, generator=torch.Generator().manual_seed(seed))
    return [[context, {"unprocessed_ltxav_embeds": True, "frame_rate": 25.0, **more}]]


def noise_like(latent, seed=3):
    return torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))


def plain():
    return {"latent": joint_latent(frames=3, size=3)}


def cfg_3():
    return plain() | {"cfg": 3.0}


def image_to_video():
    import comfy.nested_tensor

    latent = joint_latent(frames=3, size=3)
    video, audio = latent.unbind()
    video[:, :, 0] = noise_like(video[:, :, 0])
    mask = torch.ones(1, 1, 3, 1, 1)
    mask[:, :, 0] = 0
    masks = comfy.nested_tensor.NestedTensor([mask, torch.ones(1, 1, *audio.shape[2:])])
    return {"latent": latent, "mask": masks}


def spatial_mask():
    case = image_to_video()
    video, audio = case["mask"].unbind()
    video = video.expand(1, 1, 3, 3, 3).clone()
    video[..., 1] = 0.3
    import comfy.nested_tensor

    return case | {"mask": comfy.nested_tensor.NestedTensor([video, audio])}


def guides():
    """One of strength 1 and one of 0.5, the latter with a mask of its own."""
    import comfy.nested_tensor
    from comfy_extras.nodes_lt import LTXVAddGuide, _append_guide_attention_entry

    video, audio = joint_latent(frames=3, size=3).unbind()
    positive, negative = text(1), text(2)
    mask = torch.ones(1, 1, 3, 1, 1)
    for frame, strength, pixels in ((0, 1.0, None), (8, 0.5, torch.rand(1, 96, 96))):
        guide = noise_like(video[:, :, :1], seed=frame)
        positive, negative, video, mask = LTXVAddGuide.append_keyframe(
            positive, negative, frame, video, mask, guide, strength, (8, 32, 32)
        )
        positive, negative = _append_guide_attention_entry(
            positive, negative, 9, [1, 3, 3], strength, **({} if pixels is None else {"attention_mask": pixels})
        )
    masks = comfy.nested_tensor.NestedTensor([mask, torch.ones(1, 1, *audio.shape[2:])])
    latent = comfy.nested_tensor.NestedTensor([video, audio])
    return {"latent": latent, "mask": masks, "positive": positive, "negative": negative}


CASES = {function.__name__: function for function in (plain, cfg_3, image_to_video, spatial_mask, guides)}


@contextlib.contextmanager
def heard(inner):
    """The arguments and results of each forward."""
    calls, forward = [], inner._forward

    def hear(*args, **kwargs):
        given = inspect.signature(forward).bind(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        kept = {name: copied(value) for name, value in given.items()}
        result = forward(*args, **kwargs)
        calls.append((kept, result))
        return result

    inner.__dict__["_forward"] = hear
    try:
        yield calls
    finally:
        del inner.__dict__["_forward"]


def copied(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, list):
        return [copied(item) for item in value]
    return dict(value) if isinstance(value, dict) else value


def sampled(model, case, steps=3, callback=None):
    import comfy.sample

    latent = case["latent"]
    with torch.inference_mode():
        result = comfy.sample.sample(
            model,
            comfy.sample.prepare_noise(latent, 0),
            steps,
            case.get("cfg", 1.0),
            "euler",
            "normal",
            case.get("positive", text(1)),
            case.get("negative", text(2)),
            latent,
            noise_mask=case.get("mask"),
            seed=0,
            callback=callback,
            disable_pbar=True,
        )
    return list(result.unbind())


def forwards(model, case, steps=2):
    with heard(model.model.diffusion_model) as calls:
        sampled(model, case, steps)
    return calls


def by_ranks(models, arguments):
    """What each rank's forward gives."""
    from comfyui_hlwq.hlwq_core.parallel.exchange import Council, Exchange
    from comfyui_hlwq.nodes.parallel.splitting import Split

    ranks = len(models)
    threads = Threads(ranks)

    def work(rank):
        inner, group = models[rank].model.diffusion_model, threads.group(rank)
        split = Split(inner, Exchange(group, rank, ranks), Council(group))
        with torch.inference_mode(), split.installed():
            result = inner._forward(**{name: copied(value) for name, value in arguments.items()})
        assert not inner.__dict__.keys() & {"_process_transformer_blocks"}
        return [part.clone() for part in result]

    return threads.run(work)


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("case", CASES)
def test_forwards_are_the_same(models, distance, case, ranks):
    """27 tokens, and 45 with guides: no number of ranks divides them, and eight ranks are more than the tiny's four heads."""
    of_ranks = models(ranks)
    calls = forwards(of_ranks[0], CASES[case]())
    arguments, expected = calls[-1]
    results = by_ranks(of_ranks, arguments)
    assert distance(results[0], list(expected)) < 1e-5
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_with_a_lora(models, distance):
    import comfy.model_management

    of_ranks = models(2)
    tensors, _ = lora_on(of_ranks[0], KEY, size=0.5)
    patched = [with_lora(model, tensors) for model in of_ranks]
    calls = forwards(patched[0], plain())
    with torch.inference_mode():
        comfy.model_management.load_models_gpu(patched)
    assert distance(by_ranks(patched, calls[-1][0])[0], list(calls[-1][1])) < 1e-5
    assert distance(list(forwards(of_ranks[0], plain())[-1][1]), list(calls[-1][1])) > 1e-3


def test_the_model_is_as_it_was(models):
    (model,) = models(1)
    before = forwards(model, plain())[-1][1]
    (arguments, expected) = forwards(model, plain())[-1]
    (alone,) = by_ranks([model], arguments)
    assert all(map(torch.equal, alone, expected))
    assert all(map(torch.equal, before, forwards(model, plain())[-1][1]))


def test_all_stop_at_the_same_block(models):
    from comfyui_hlwq.hlwq_core.parallel.exchange import Council, Exchange
    from comfyui_hlwq.nodes.parallel.splitting import Split, Stopped

    of_ranks = models(2)
    arguments = forwards(of_ranks[0], plain())[-1][0]
    threads = Threads(2)

    def work(rank):
        inner, group = of_ranks[rank].model.diffusion_model, threads.group(rank)
        split = Split(inner, Exchange(group, rank, 2), Council(group), stop=lambda: rank == 1)
        with torch.inference_mode(), split.installed(), pytest.raises(Stopped):
            inner._forward(**{name: copied(value) for name, value in arguments.items()})
        return "forward" not in inner.transformer_blocks[0].attn1.__dict__

    assert threads.run(work) == [True, True]
