"""The tiny model: real structure, the same on every run, and alive in ComfyUI's own BF16 path."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import hlwq_core
from hlwq_core.models.ltx23 import tensors as expected

ROOT = Path(__file__).resolve().parents[2]
BLOCKS, CONNECTOR_LAYERS = 2, 2


@pytest.fixture(scope="module")
def folder(tiny: Path) -> Path:
    return tiny / "models" / "hlwq" / "LTX-2.3-tiny-HLWQ-Q5"


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> hlwq_core.Checkpoint:
    return hlwq_core.open_checkpoint(folder)


@pytest.fixture(scope="module")
def reference(tiny: Path) -> Path:
    return tiny / "models" / "reference" / "ltx23_tiny_bf16.safetensors"


def in_tiny(name: str) -> bool:
    """Whether a tensor of LTX-2.3 belongs to a layer that the tiny model has."""
    block = re.search(r"\.transformer_blocks\.(\d+)\.", name)
    layer = re.search(r"\.transformer_1d_blocks\.(\d+)\.", name)
    return not (block and int(block[1]) >= BLOCKS) and not (layer and int(layer[1]) >= CONNECTOR_LAYERS)


def test_names_and_dtypes_are_those_of_the_real_model(reference):
    with safe_open(reference, "pt") as file:
        found = {name: file.get_slice(name).get_dtype() for name in file.keys()}
    assert found == {name: dtype for name, (dtype, _) in expected().items() if in_tiny(name)}


def test_dimensions_are_those_of_the_real_model(reference):
    with safe_open(reference, "pt") as file:
        for name in file.keys():
            shape, real = file.get_slice(name).get_shape(), expected()[name][1]
            assert len(shape) == len(real) and shape[2:] == list(real[2:]), name


def test_quantized_are_28_a_block_and_three(checkpoint):
    names = checkpoint.names()
    in_blocks = [name for name in names if ".transformer_blocks." in name]
    assert len(in_blocks) == 28 * BLOCKS
    assert {name for name in names if name not in in_blocks} == {
        "model.diffusion_model.proj_out.weight",
        "model.diffusion_model.audio_proj_out.weight",
        "vocoder.mel_stft.mel_basis",
    }
    assert {checkpoint.info(name).variant for name in names} == {"V1"}
    assert {checkpoint.info(name).bits for name in names} == {5}


def test_codes_and_bf16_file_make_the_whole_model(checkpoint, reference):
    with safe_open(reference, "pt") as file:
        assert sorted([*checkpoint.names(), *checkpoint.plain_names()]) == sorted(file.keys())


def test_widths_with_and_without_padding(folder, reference):
    with safe_open(reference, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    checkpoint = hlwq_core.open_checkpoint(folder, shapes=shapes)
    widths = {checkpoint.info(name).shape[1] for name in checkpoint.names()}
    assert {256, 1024, 384, 96, 257} == widths


def test_published_layout(folder):
    chunks = sorted((folder / "polarquant" / "codes").iterdir())
    assert [chunk.name for chunk in chunks] == [f"chunk_{i:02}_codes.safetensors" for i in range(4)]
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert file.metadata() is None, path.name
    # As in real chunks, one weight's tensors may lie in two of them.
    bases = []
    for chunk in chunks:
        with safe_open(chunk, "pt") as file:
            bases.append({name.rpartition("__")[0] for name in file.keys()})
    assert any(a & b for i, a in enumerate(bases) for b in bases[:i])


def test_reference_holds_the_decoded_weights(folder, reference):
    with safe_open(reference, "pt") as file:
        config = json.loads(file.metadata()["config"])
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        checkpoint = hlwq_core.open_checkpoint(folder, shapes=shapes)
        for name in checkpoint.names():
            assert torch.equal(checkpoint.decode(name), file.get_tensor(name)), name
        for name in checkpoint.plain_names():
            assert torch.equal(checkpoint.plain(name), file.get_tensor(name)), name
    assert config == json.loads((folder / "config.json").read_text())


def test_small_enough(tiny):
    def size(*folders):
        return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())

    assert size(tiny / "models", tiny / "input") < 60e6
    assert all(size(folder) < 60e6 for folder in tiny.glob("ltx*"))


def test_the_same_bytes_again(tiny, comfyui_path, tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "make_tiny.py"), str(tmp_path / "again")]
    subprocess.run([*command, "--comfyui", str(comfyui_path)], check=True, timeout=120, cwd=tmp_path)

    def digests(folder: Path) -> dict[str, str]:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    assert digests(tmp_path / "again") == digests(tiny)


def test_refuses_a_folder_without_comfyui(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "make_tiny.py"), str(tmp_path / "x"), "--comfyui", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "no ComfyUI with LTX-2" in done.stderr
    assert not (tmp_path / "x").exists()


def test_inputs(tiny):
    picture = np.asarray(Image.open(tiny / "input" / "start.png"))
    assert picture.shape == (512, 768, 3) and picture.std() > 40
    with wave.open(str(tiny / "input" / "voice.wav")) as sound:
        assert sound.getnchannels() == 2 and sound.getframerate() == 48000 and sound.getnframes() == 3 * 48000


# ComfyUI's own loaders, sampler and VAEs, without the pack.


@pytest.fixture(scope="module")
def loaded(comfy, reference):
    import comfy.sd
    import comfy.utils

    model, _, vae, _ = comfy.sd.load_checkpoint_guess_config(str(reference), output_clip=False)
    state, metadata = comfy.utils.load_torch_file(str(reference), return_metadata=True)
    prefixes = {"audio_vae.": "autoencoder.", "vocoder.": "vocoder."}
    audio_vae = comfy.sd.VAE(
        sd=comfy.utils.state_dict_prefix_replace(dict(state), prefixes, filter_keys=True), metadata=metadata
    )
    bias = "text_embedding_projection.{}_aggregate_embed.bias"
    model.text_bias = {stream: state[bias.format(stream)] for stream in ("video", "audio")}
    return model, vae, audio_vae


def sample(loaded, seed: int, text_seed: int = 0, steps: int = 4) -> list[torch.Tensor]:
    import comfy.sample
    from comfy.nested_tensor import NestedTensor

    model, _, audio_vae = loaded
    generator = torch.Generator().manual_seed(seed)
    latents = NestedTensor(
        (
            torch.zeros(1, 128, 4, 2, 2),
            torch.zeros(1, 8, audio_vae.first_stage_model.num_of_latents_from_frames(25, 25), 16),
        )
    )
    noise = NestedTensor(tuple(torch.randn(part.shape, generator=generator) for part in latents.unbind()))
    # What the text projection's bias gives every token, and something of its own.
    text = torch.cat([model.text_bias[stream] for stream in ("video", "audio")]).float()
    text = text + torch.randn(1, 8, 352, generator=torch.Generator().manual_seed(text_seed))
    prompt = [[text, {"unprocessed_ltxav_embeds": True, "frame_rate": 25}]]
    with torch.inference_mode():
        out = comfy.sample.sample(
            model, noise, steps, 1.0, "euler", "simple", prompt, prompt, latents, disable_pbar=True
        )
    return out.unbind()


def test_every_tensor_has_its_place(loaded, reference):
    model, vae, audio_vae = loaded
    with safe_open(reference, "pt") as file:
        names = set(file.keys())
    there = {f"model.{name}" for name in model.model.state_dict()} & names
    there |= {f"vae.{name}" for name in vae.first_stage_model.state_dict()}
    audio = audio_vae.first_stage_model.state_dict()
    there |= {re.sub("^autoencoder", "audio_vae", name) for name in audio}
    assert {name for name in names - there if not name.startswith("text_embedding_projection")} == set()
    assert there <= names


def test_samples_and_decodes(loaded):
    _, vae, audio_vae = loaded
    video, audio = sample(loaded, seed=1, steps=20)
    for latent in (video, audio):
        assert torch.isfinite(latent).all() and 0.3 < float(latent.std()) < 2
    with torch.inference_mode():
        frames, sound = vae.decode(video), audio_vae.decode(audio)
    assert frames.shape == (1, 25, 64, 64, 3)
    assert float(frames.std()) > 0.05
    assert float(((frames == 0) | (frames == 1)).float().mean()) < 0.05
    assert float((frames[:, 1:] - frames[:, :-1]).abs().mean()) > 1e-4, "a still picture"
    assert sound.shape == (1, 25 * 4 * 480 - 3 * 480, 2)
    assert 0.02 < float(sound.std()) < 0.5 and abs(float(sound.mean())) < 0.01


def test_seed_and_text_matter(loaded):
    first = sample(loaded, seed=1)
    for other in (sample(loaded, seed=2), sample(loaded, seed=1, text_seed=3)):
        for a, b in zip(first, other):
            assert float((a - b).norm() / a.norm()) > 0.02
    for a, b in zip(first, sample(loaded, seed=1)):
        assert torch.equal(a, b)


def test_encodes_picture_and_sound(loaded, tiny):
    _, vae, audio_vae = loaded
    picture = torch.from_numpy(np.asarray(Image.open(tiny / "input" / "start.png")).copy())[None, ::2, ::2] / 255
    tone = torch.sin(torch.arange(48000) / 10).expand(1, 2, -1).movedim(1, -1)
    with torch.inference_mode():
        image_latent, sound_latent = vae.encode(picture), audio_vae.encode(tone)
    assert image_latent.shape == (1, 128, 1, 8, 12) and 0.3 < float(image_latent.std()) < 3
    assert sound_latent.shape[1::2] == (8, 16) and 0.2 < float(sound_latent.std()) < 3


def test_lora_keys_fit(loaded, tiny):
    import comfy.lora
    import comfy.utils

    lora = comfy.utils.load_torch_file(str(tiny / "models/loras/ltx-2.3-tiny-distilled-lora.safetensors"))
    keys = comfy.lora.model_lora_keys_unet(loaded[0].model, {})
    patches = comfy.lora.load_lora(lora, keys)
    assert len(patches) == len(lora) // 2 == 28 * BLOCKS + 2


@pytest.mark.parametrize(("kind", "shape"), [("spatial", (1, 128, 4, 4, 6)), ("temporal", (1, 128, 7, 2, 3))])
def test_upscalers(comfy, tiny, kind, shape):
    import comfy.ops
    import comfy.utils
    from comfy.ldm.lightricks.latent_upsampler import LatentUpsampler

    path = next((tiny / "models" / "latent_upscale_models").glob(f"*{kind}*"))
    state, metadata = comfy.utils.load_torch_file(str(path), return_metadata=True)
    config = json.loads(metadata["config"])
    upscaler = LatentUpsampler.from_config(config, comfy.ops.disable_weight_init).to(torch.bfloat16)
    upscaler.load_state_dict(state)
    latent = torch.randn(1, 128, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        result = upscaler.float()(latent)
    assert result.shape == shape
    assert torch.isfinite(result).all() and 0.2 < float(result.std()) < 3
    published = tiny / "models/hlwq/LTX-2.3-tiny-HLWQ-Q5/upscalers" / path.name.replace("-tiny", "")
    with safe_open(published, "pt") as file:
        assert all(torch.equal(file.get_tensor(name), value) for name, value in state.items())
