"""Putting the tiny model's files where ComfyUI looks for them."""

from __future__ import annotations

import json
import math
import re
import tempfile
import wave
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hlwq_core.codec.codec import Encoded, encode
from hlwq_core.format.writer import write_safetensors
from hlwq_core.tools.quantize import quantize

from . import gemma, gemma4, structure
from .config import config, split_vae_config, upscaler_config, version_config, whole_ltx2_config
from .noise import normal
from .transformer import PREFIX

State = dict[str, torch.Tensor]

NAME = "LTX-2.3-tiny-HLWQ-Q5"
CHUNKS = 4
BITS = 5
UPSCALERS = {"spatial": "ltx-2.3-spatial-upscaler-x2-1.1", "temporal": "ltx-2.3-temporal-upscaler-x2-1.0"}
LORA_RANK = 4

BLOCK_LINEAR = re.compile(
    r".*\.transformer_blocks\.\d+\..*(to_q|to_k|to_v|to_out\.0|ff\.net\.0\.proj|ff\.net\.2)\.weight"
)
OUTSIDE_BLOCKS = (PREFIX + "proj_out.weight", PREFIX + "audio_proj_out.weight", "vocoder.mel_stft.mel_basis")


def quantized_names(weights: State) -> list[str]:
    """The 28 matrices of each block and the 3 others that the published checkpoint quantizes."""
    return [name for name in weights if BLOCK_LINEAR.fullmatch(name) or name in OUTSIDE_BLOCKS]


def everything(dest: Path) -> None:
    """Fill `dest` with models and inputs; see make_tiny.py for the list."""
    models = dest / "models"
    tiny = config()
    weights = structure.checkpoint(tiny)
    encoded = {name: encode(weights[name], BITS) for name in quantized_names(weights)}
    checkpoint = models / "hlwq" / NAME

    _write_codes(checkpoint / "polarquant" / "codes", encoded)
    save(
        checkpoint / "polarquant" / "bf16" / "ltx23_bf16.safetensors",
        {name: value for name, value in weights.items() if name not in encoded},
    )
    (checkpoint / "config.json").write_text(json.dumps(tiny, indent=1) + "\n")
    decoded = {name: value.decode(torch.bfloat16) for name, value in encoded.items()}
    save(models / "reference" / "ltx23_tiny_bf16.safetensors", weights | decoded, {"config": json.dumps(tiny)})

    for kind, stem in UPSCALERS.items():
        state = structure.upscaler(kind)
        save(checkpoint / "upscalers" / f"{stem}.safetensors", state)
        metadata = {"config": json.dumps(upscaler_config(kind))}
        save(models / "latent_upscale_models" / f"{stem}-tiny.safetensors", state, metadata)

    for version in ("ltx25", "ltx2"):
        if structure.knows(version):
            _write_version(dest / version / "models", version)
    _write_gemma(models)
    save(models / "loras" / "ltx-2.3-tiny-distilled-lora.safetensors", _lora(weights, list(encoded)))
    write_inputs(dest / "input")


def _write_version(models: Path, version: str) -> None:
    """A tiny transformer of another version, alone: with the prefix and its config, as such files are published. LTX-2.5 is
    whole: beside it, each in a file of its own, what core's loaders take."""
    tiny = version_config(version)
    state = structure.of_version(version, tiny)
    dense = models / "diffusion_models" / f"{version}_tiny_bf16.safetensors"
    save(dense, state, {"config": json.dumps(tiny)})
    if version == "ltx2":
        _write_ltx2(models / "checkpoints" / "LTX-2-tiny-HLWQ-Q5.safetensors")
        return
    quantize(dense, dense.with_name("LTX-2.5-tiny-HLWQ-Q5.safetensors"), layout="single")
    names = [name for name in state if BLOCK_LINEAR.fullmatch(name)]
    save(models / "loras" / "ltx-2.5-tiny-lora.safetensors", _lora(state, names))
    for kind in ("video", "video-conv", "audio"):
        part = split_vae_config(kind)
        path = models / "vae" / f"ltx-2.5-tiny-{kind}-vae.safetensors"
        save(path, structure.split_vae(kind, part), {"config": json.dumps(part)})
    metadata = {"config": json.dumps(upscaler_config("spatial"))}
    upscaler = models / "latent_upscale_models" / "ltx-2.5-tiny-spatial-upscaler-x2.safetensors"
    save(upscaler, structure.upscaler("spatial"), metadata)
    encoder = models / "text_encoders" / "gemma4_tiny_with_proj.safetensors"
    save(encoder, gemma4.tensors(structure.gemma4_shapes(gemma4.VOCABULARY)))
    quantize(encoder, encoder.with_name("gemma4-tiny-with-proj-HLWQ-Q5.safetensors"), rules="gemma", layout="single")


def _write_ltx2(path: Path) -> None:
    """A whole LTX-2, packed."""
    tiny = whole_ltx2_config()
    with tempfile.TemporaryDirectory() as folder:
        dense = Path(folder) / "dense.safetensors"
        save(dense, structure.whole_ltx2(tiny), {"config": json.dumps(tiny)})
        quantize(dense, path, layout="single")


def save(path: Path, tensors: State, metadata: dict[str, str] | None = None) -> None:
    """Write a dense safetensors file, tensors sorted by name."""
    entries = [(name, t.dtype, tuple(t.shape), lambda t=t: t) for name, t in sorted(tensors.items())]
    write_safetensors(path, entries, metadata)


def entries(name: str, layer: Encoded, *, dotted: bool) -> State:
    """The three tensors of a quantized weight: V1 (no dots, meta of 4) or V2 (dots, meta of 5)."""
    rows, blocks = layer.norms.shape
    meta = [rows, blocks, 128, rows * blocks * 128] + ([layer.in_features] if dotted else [])
    stem = name if dotted else name.replace(".", "__")
    return {
        f"{stem}__packed": layer.packed("msb").flatten(),
        f"{stem}__norms": layer.norms,
        f"{stem}__meta": torch.tensor(meta, dtype=torch.int64),
    }


def _write_codes(folder: Path, encoded: dict[str, Encoded]) -> None:
    tensors: State = {}
    for name, layer in encoded.items():
        tensors |= entries(name, layer, dotted=False)
    # Cut anywhere, as the published chunks are: one weight's three tensors may end up in two files.
    names = list(tensors)
    size = math.ceil(len(names) / CHUNKS)
    if size % 3 == 0:
        size += 1
    for index, start in enumerate(range(0, len(names), size)):
        part = {name: tensors[name] for name in names[start : start + size]}
        save(folder / f"chunk_{index:02}_codes.safetensors", part)


def _write_gemma(models: Path) -> None:
    weights = gemma.tensors()
    save(models / "text_encoders" / "gemma_3_tiny.safetensors", weights)
    tensors: State = {}
    names = gemma.quantized_names(weights)
    for name in names:
        tensors |= entries(name, encode(weights[name], BITS), dotted=True)
    folder = models / "text_encoders" / "gemma-3-tiny-HLWQ-Q5"
    save(folder / "model.safetensors", tensors | {n: t for n, t in weights.items() if n not in names})
    (folder / "polar_config.json").write_text(json.dumps({"format": "hlwq-q5", "bits": BITS, "block_size": 128}) + "\n")


def _lora(weights: State, names: list[str]) -> State:
    """A distillation LoRA under the published names, about a tenth of each weight's size."""
    lora: State = {}
    for name in names:
        if not name.startswith(PREFIX):
            continue
        rows, columns = weights[name].shape
        stem = name.removeprefix("model.").removesuffix(".weight")
        down = normal(f"{stem} down", LORA_RANK, columns, std=columns**-0.5)
        up = normal(f"{stem} up", rows, LORA_RANK, std=0.05)
        lora |= {f"{stem}.lora_A.weight": down.bfloat16(), f"{stem}.lora_B.weight": up.bfloat16()}
    return lora


def write_inputs(folder: Path) -> None:
    """A start picture (a sun over hills) and a sound to follow (a falling and a rising tone)."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[0:1:512j, 0:1.5:768j]
    sky = np.stack([0.3 + 0.6 * y, 0.45 + 0.25 * y, 0.85 - 0.45 * y], axis=-1)
    sun = np.clip(1.4 - 9 * np.hypot(x - 1.05, y - 0.32), 0, 1)[..., None]
    picture = sky + sun * ([1.0, 0.85, 0.4] - sky)
    hills = (y > 0.68 + 0.09 * np.sin(5 * x) + 0.03 * np.sin(17 * x))[..., None]
    picture = np.where(hills, np.stack([0.15 + 0.2 * y, 0.35 * y + 0.1, 0.12 + 0 * y], axis=-1), picture)
    Image.fromarray((255 * np.clip(picture, 0, 1)).astype(np.uint8)).save(folder / "start.png")

    rate, seconds = 48000, 3
    t = np.arange(rate * seconds) / rate
    left = np.sin(2 * np.pi * (440 * t - 40 * t**2)) * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * t))
    right = np.sin(2 * np.pi * (220 * t + 40 * t**2)) * (0.6 + 0.4 * np.cos(2 * np.pi * 2 * t))
    samples = (0.4 * 32767 * np.stack([left, right], axis=1)).astype("<i2")
    with wave.open(str(folder / "voice.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
