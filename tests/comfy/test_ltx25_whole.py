"""A whole LTX-2.5, each part in a file of its own: packed transformer and text encoder, and VAEs by core's loader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def models(tiny: Path) -> Path:
    folder = tiny / "ltx25" / "models"
    if not folder.is_dir():
        pytest.skip("this ComfyUI does not know LTX-2.5")
    return folder


def vae(models: Path, kind: str) -> Any:
    """As core's Load VAE makes it."""
    import comfy.sd
    import comfy.utils

    path = models / "vae" / f"ltx-2.5-tiny-{kind}-vae.safetensors"
    with torch.inference_mode():
        state, metadata = comfy.utils.load_torch_file(str(path), return_metadata=True)
        return comfy.sd.VAE(sd=state, metadata=metadata)


@pytest.fixture(scope="module")
def sampled(pack: ModuleType, models: Path, comfy_base: Path, sample: Callable) -> list[torch.Tensor]:
    """[video, audio] of 17 frames at 64×64 from a prompt, everything packed."""
    import nodes
    from comfyui_hlwq.nodes.load_checkpoint import load_checkpoint
    from comfyui_hlwq.nodes.text_encoder import load_text_encoder

    checkpoint = models / "diffusion_models" / "LTX-2.5-tiny-HLWQ-Q5.safetensors"
    with torch.inference_mode():
        model = load_checkpoint(checkpoint, vaes=False)[0]
        clip = load_text_encoder(models / "text_encoders" / "gemma4-tiny-with-proj-HLWQ-Q5.safetensors", checkpoint)
        text = nodes.CLIPTextEncode().encode(clip, "a cat playing piano")[0]
    text[0][1]["frame_rate"] = 24.0
    return sample(model, text=text)


@pytest.mark.parametrize("kind", ["video", "video-conv"])
def test_both_video_vaes_decode_what_was_sampled(models: Path, sampled, kind: str) -> None:
    """By the pack's own way, piece by piece, and by core's node: the same frames, or nearly where both work in tiles."""
    from comfyui_hlwq.nodes import decoding

    loaded, frames = vae(models, kind), []
    with torch.inference_mode():
        decoding.decode(loaded, sampled[0], frames.append)
        expected = loaded.decode(sampled[0])[0]
    found = torch.cat(frames)
    assert found.shape == expected.shape == (9, 64, 64, 3)
    assert float(found.std()) > 0.02
    assert float((found - expected).abs().mean()) < 0.01


def test_the_audio_vae_decodes_what_was_sampled(models: Path, sampled) -> None:
    from comfyui_hlwq.nodes.compat.vae import decode_sound

    with torch.inference_mode():
        sound = decode_sound(sampled[1], vae(models, "audio"))
    assert sound["waveform"].shape[:2] == (1, 2) and float(sound["waveform"].abs().max()) > 1e-3


@pytest.mark.parametrize("kind", ["video", "video-conv"])
def test_the_upscaler_takes_either_video_vae(models: Path, sampled, kind: str) -> None:
    from comfyui_hlwq.nodes.load_upscaler import load_upscaler
    from comfyui_hlwq.nodes.upscale_latent import HLWQUpscaleLatent

    file = models / "latent_upscale_models" / "ltx-2.5-tiny-spatial-upscaler-x2.safetensors"
    with torch.inference_mode():
        upscaler = load_upscaler(file)
        (latent, _) = HLWQUpscaleLatent.execute(
            {"samples": sampled[0]}, vae(models, kind), "spatial", 24.0, upscaler
        ).args
    assert latent["samples"].shape == (1, 128, 2, 4, 4)


def test_a_lora_file_changes_the_latents_as_in_core(pack, models: Path, sample, distance, tmp_path: Path) -> None:
    """On every layer: packed, against core running the same decoded weights in BF16 with the same LoRA; off, bit for bit as before."""
    import comfy.sd
    import comfy.utils
    from comfyui_hlwq.hlwq_core import open_checkpoint
    from comfyui_hlwq.nodes.load_checkpoint import load_checkpoint
    from safetensors.torch import save_file

    packed = models / "diffusion_models" / "LTX-2.5-tiny-HLWQ-Q5.safetensors"
    ckpt = open_checkpoint(packed)
    decoded = {name: ckpt.decode(name) for name in ckpt.names()} | {n: ckpt.plain(n) for n in ckpt.plain_names()}
    save_file(decoded, tmp_path / "decoded.safetensors", {"config": ckpt.metadata["config"]})
    lora = comfy.utils.load_torch_file(str(models / "loras" / "ltx-2.5-tiny-lora.safetensors"))
    with torch.inference_mode():
        model = load_checkpoint(packed, vaes=False)[0]
        reference = comfy.sd.load_diffusion_model(str(tmp_path / "decoded.safetensors"))
    plain = sample(model, steps=2)
    found, expected = (
        sample(comfy.sd.load_lora_for_models(each, None, dict(lora), 1.0, 0)[0], steps=2) for each in (model, reference)
    )
    assert distance(found, expected) <= 0.01 < distance(found, plain)
    assert all(map(torch.equal, sample(model, steps=2), plain))
