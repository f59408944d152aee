"""HLWQUpscaleLatent: core's upsampler on video and joint latents, the frame rate that follows, and what is refused."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch

MID = 32


@pytest.fixture(scope="module")
def node(pack):
    return importlib.import_module(f"{pack.__name__}.nodes.upscale_latent")


@pytest.fixture(scope="module")
def errors(pack):
    return importlib.import_module(f"{pack.__name__}.hlwq_core.errors")


@pytest.fixture(scope="module")
def vae(node):
    """LTX's video VAE reduced to what an upscaler needs of it: the class and the channel statistics."""
    from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE, processor

    model = VideoVAE.__new__(VideoVAE)
    torch.nn.Module.__init__(model)
    model.per_channel_statistics = processor()
    generator = torch.Generator().manual_seed(3)
    model.per_channel_statistics.get_buffer("std-of-means").copy_(torch.rand(128, generator=generator) + 0.5)
    model.per_channel_statistics.get_buffer("mean-of-means").copy_(torch.randn(128, generator=generator))
    return SimpleNamespace(first_stage_model=model)


def upscaler(kind: str, channels: int = 128):
    import comfy.model_management
    import comfy.model_patcher
    import comfy.ops
    from comfy.ldm.lightricks.latent_upsampler import LatentUpsampler

    torch.manual_seed(1)
    model = LatentUpsampler(
        comfy.ops.disable_weight_init, channels, MID, 1, 3, spatial_upsample=kind == "spatial",
        temporal_upsample=kind == "temporal",
    )  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    comfy.model_management.archive_model_dtypes(model)
    cpu = torch.device("cpu")
    return comfy.model_patcher.CoreModelPatcher(model, load_device=cpu, offload_device=cpu)


@pytest.fixture(scope="module")
def spatial(node):
    return upscaler("spatial")


@pytest.fixture(scope="module")
def temporal(node):
    return upscaler("temporal")


def joint(*parts):
    from comfy.nested_tensor import NestedTensor

    return NestedTensor(parts)


def video_latent(frames: int = 3) -> torch.Tensor:
    return torch.randn(1, 128, frames, 2, 3, generator=torch.Generator().manual_seed(0))


def by_core(video, model, vae):
    from comfy_extras.nodes_lt_upsampler import LTXVLatentUpsampler

    return LTXVLatentUpsampler.execute({"samples": video}, model, vae).args[0]["samples"]


def test_spatial_is_cores(node, vae, spatial):
    out, rate = node.HLWQUpscaleLatent.execute({"samples": video_latent()}, vae, "spatial", 24.0, spatial).args
    assert out["samples"].shape == (1, 128, 3, 4, 6)
    assert torch.equal(out["samples"], by_core(video_latent(), spatial, vae))
    assert rate == 24.0


def test_temporal_doubles_the_rate(node, vae, temporal):
    latent = {"samples": video_latent()}
    out, rate = node.HLWQUpscaleLatent.execute(latent, vae, "temporal", 24.0, None, temporal).args
    assert out["samples"].shape == (1, 128, 5, 2, 3)
    assert torch.equal(out["samples"], by_core(video_latent(), temporal, vae))
    assert rate == 48.0
    frames, doubled = (3 - 1) * 8 + 1, (5 - 1) * 8 + 1
    assert abs(frames / 24.0 - doubled / rate) < 1 / 24.0  # it lasts as long as before


def test_both_is_one_after_the_other(node, vae, spatial, temporal):
    latent = {"samples": video_latent()}
    out, rate = node.HLWQUpscaleLatent.execute(latent, vae, "both", 12.5, spatial, temporal).args
    assert out["samples"].shape == (1, 128, 5, 4, 6)
    expected = by_core(by_core(video_latent(), spatial, vae), temporal, vae)
    assert torch.equal(out["samples"], expected)
    assert rate == 25.0


def test_sound_passes_untouched(node, vae, temporal):
    sound = torch.randn(1, 8, 11, 16)
    latent = {"samples": joint(video_latent(), sound), "type": "audio"}
    out, _ = node.HLWQUpscaleLatent.execute(latent, vae, "temporal", 24.0, None, temporal).args
    video, untouched = out["samples"].unbind()
    assert video.shape == (1, 128, 5, 2, 3)
    assert untouched is sound
    assert "noise_mask" not in out
    assert latent["samples"].unbind()[0].shape == (1, 128, 3, 2, 3)  # the input is left alone


def test_a_given_sound_stays_given(node, vae, spatial):
    """The sound's mask goes on, or audio-to-video would sample the user's sound anew; the video's mask is dropped."""
    sound, keep = torch.randn(1, 8, 11, 16), torch.zeros(1, 1, 11, 16)
    mask = joint(torch.zeros(1, 1, 3, 1, 1), keep)
    latent = {"samples": joint(video_latent(), sound), "noise_mask": mask}
    out, _ = node.HLWQUpscaleLatent.execute(latent, vae, "spatial", 24.0, spatial).args
    video_mask, audio_mask = out["noise_mask"].unbind()
    assert torch.equal(audio_mask, keep)
    assert video_mask.shape == (1, 1, 3, 4, 6) and video_mask.min() == 1


def test_noise_mask_of_a_video_alone_is_dropped(node, vae, spatial):
    latent = {"samples": video_latent(), "noise_mask": torch.zeros(1, 1, 3, 1, 1), "downscale_ratio_spacial": 32}
    out, _ = node.HLWQUpscaleLatent.execute(latent, vae, "spatial", 24.0, spatial).args
    assert "noise_mask" not in out
    assert out["downscale_ratio_spacial"] == 32


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (torch.randn(1, 16, 3, 8, 8), ["not an LTX video latent", "128", "[1, 16, 3, 8, 8]"]),
        (torch.randn(1, 4, 64, 64), ["not an LTX video latent", "[1, 4, 64, 64]"]),
        (torch.randn(1, 8, 11, 16), ["audio latent alone"]),
    ],
)
def test_other_latents_refused(node, errors, vae, spatial, samples, words):
    with pytest.raises(errors.InputError) as caught:
        node.HLWQUpscaleLatent.execute({"samples": samples}, vae, "spatial", 24.0, spatial)
    assert all(word in str(caught.value) for word in [*words, "expected: ", "found: ", "what to do: "])


def test_wrong_socket_refused(node, errors, vae, spatial, temporal):
    latent = {"samples": video_latent()}
    run = node.HLWQUpscaleLatent.execute
    with pytest.raises(errors.InputError, match=r"(?s)spatial_upscaler.*an LTX spatial.*an LTX temporal"):
        run(latent, vae, "spatial", 24.0, temporal)
    with pytest.raises(errors.InputError, match=r"(?s)temporal_upscaler.*an LTX temporal.*an LTX spatial"):
        run(latent, vae, "both", 24.0, spatial, spatial)
    with pytest.raises(errors.InputError, match=r"(?s)needs a temporal upscaler.*nothing connected"):
        run(latent, vae, "both", 24.0, spatial)
    with pytest.raises(errors.InputError, match="not one of LTX's"):
        run(latent, vae, "spatial", 24.0, SimpleNamespace(model=torch.nn.Linear(2, 2)))


def test_upscaler_of_other_channels_refused(node, errors, vae):
    with pytest.raises(errors.InputError, match="16 channels"):
        node.HLWQUpscaleLatent.execute({"samples": video_latent()}, vae, "spatial", 24.0, upscaler("spatial", 16))


def test_audio_vae_refused(node, errors, spatial):
    wrong = SimpleNamespace(first_stage_model=torch.nn.Linear(2, 2))
    with pytest.raises(errors.InputError, match="not LTX's video VAE"):
        node.HLWQUpscaleLatent.execute({"samples": video_latent()}, wrong, "spatial", 24.0, spatial)


def test_a_still_has_no_motion(node, errors, vae, temporal):
    with pytest.raises(errors.InputError, match="one latent frame"):
        node.HLWQUpscaleLatent.execute({"samples": video_latent(1)}, vae, "temporal", 24.0, None, temporal)


def test_nothing_runs_before_all_is_checked(node, errors, vae, spatial, monkeypatch):
    monkeypatch.setattr(node.compat, "upsample_latent", lambda *a: pytest.fail("ran"))
    with pytest.raises(errors.InputError):
        node.HLWQUpscaleLatent.execute({"samples": video_latent()}, vae, "both", 24.0, spatial, None)
