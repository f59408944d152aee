"""Names and shapes of the tiny model, from ComfyUI's classes: the only module that imports ComfyUI."""

from __future__ import annotations

import importlib
import inspect
import json
import math
from typing import Any

import torch
from comfy.cli_args import args

args.cpu = True

import comfy.ops  # noqa: E402
from comfy.ldm.lightricks.av_model import LTXAVModel  # noqa: E402
from comfy.ldm.lightricks.latent_upsampler import LatentUpsampler  # noqa: E402
from comfy.ldm.lightricks.vae.audio_vae import AudioVAE  # noqa: E402
from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE  # noqa: E402

from . import codecs, transformer  # noqa: E402
from .config import GEMMA, GEMMA4, upscaler_config  # noqa: E402

State = dict[str, torch.Tensor]


def checkpoint(config: dict[str, Any]) -> State:
    """Every tensor of the checkpoint under its published name, in the published dtype."""
    weights: State = {}
    for name, shape in transformer_shapes(config).items():
        weights[name] = transformer.weight(name, shape)
    weights |= video_vae(config["vae"])
    weights |= audio_vae(config)
    return {name: value.float() if "scale_shift_table" in name else value.bfloat16() for name, value in weights.items()}


def knows(version: str) -> bool:
    """Whether this ComfyUI builds a version's transformer: `ltx2`, `ltx23` or `ltx25`."""
    return version != "ltx25" or "audio_ff_bias" in inspect.signature(LTXAVModel).parameters


def of_version(version: str, config: dict[str, Any]) -> State:
    """The transformer of a version, under its published names, in the published dtypes."""
    keyframes = {"use_keyframes_abs_pos_embedding": True} if version == "ltx25" else {}
    model = LTXAVModel(**config["transformer"], **keyframes, device="meta", operations=comfy.ops.disable_weight_init)
    weights: State = {}
    for name, value in model.state_dict().items():
        made = transformer.weight(transformer.PREFIX + name, tuple(value.shape))
        weights[transformer.PREFIX + name] = made.float() if "scale_shift_table" in name else made.bfloat16()
    return weights


def whole_ltx2(config: dict[str, Any]) -> State:
    """A checkpoint of LTX-2: transformer, the text projection that both streams share, VAEs."""
    states = config["transformer"]["caption_channels"] * 49
    name = "text_embedding_projection.aggregate_embed.weight"
    weights = {name: transformer.weight(name, (config["transformer"]["caption_channels"], states))}
    weights |= video_vae(config["vae"]) | audio_vae(config)
    return of_version("ltx2", config) | {key: value.bfloat16() for key, value in weights.items()}


def gemma4_shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    """ComfyUI's Gemma 4 12B with few channels: names and shapes."""
    core = importlib.import_module("comfy.text_encoders.gemma4")
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    config = core.Gemma4_12B_Config(vocab_size=vocabulary, **{name: GEMMA[name] for name in names})
    for name, value in GEMMA4.items():
        setattr(config, name, value)
    width = config.hidden_size
    config.vision_config = {**config.vision_config, "mm_embed_dim": width, "output_proj_dims": width}
    model = core.Gemma4_12B.__new__(core.Gemma4_12B)
    torch.nn.Module.__init__(model)
    model._init_model(config, torch.bfloat16, "meta", comfy.ops.disable_weight_init)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def split_vae(kind: str, config: dict[str, Any]) -> State:
    """One of LTX-2.5's VAE files, in the published names and dtype: `video`, `video-conv` or `audio`."""
    if kind == "audio":
        state = audio_vae(config)
    elif kind == "video-conv":
        state = {name.removeprefix("vae."): value for name, value in video_vae(config["vae"]).items()}
    else:
        core = importlib.import_module("comfy.ldm.lightricks.vae.na_diffusion_decoder")
        upsamplings = [math.prod(stride) for stride, _ in config["vae"]["decoder"]["upsamples"]]
        state = {}
        for name, value in core.CausalDiffusionVAE(config["vae"]).state_dict().items():
            shape = tuple(value.shape)
            decoder = name.startswith("decoder.")
            state[name] = (codecs.diffusion_decoder if decoder else codecs.video_vae)(name, shape, upsamplings)
    return {name: value.bfloat16() for name, value in state.items()}


def transformer_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the transformer and of the projection of its text."""
    model = LTXAVModel(**config["transformer"], device="meta", operations=comfy.ops.disable_weight_init)
    shapes = {transformer.PREFIX + name: tuple(value.shape) for name, value in model.state_dict().items()}
    states = config["transformer"]["caption_channels"] * 49  # the embeddings and 48 layers of the text encoder
    for stream, width in (("video", model.inner_dim), ("audio", model.audio_inner_dim)):
        name = f"text_embedding_projection.{stream}_aggregate_embed"
        shapes |= {f"{name}.weight": (width, states), f"{name}.bias": (width,)}
    return shapes


def video_vae(config: dict[str, Any]) -> State:
    """The video VAE's tensors, of the config's part `vae`, under their published names."""
    model = VideoVAE(config=config)
    upsamplings = [math.prod(getattr(block, "stride", (1,))) for block in model.decoder.up_blocks]
    return {
        f"vae.{name}": codecs.video_vae(name, tuple(value.shape), upsamplings)
        for name, value in model.state_dict().items()
    }


def audio_vae(config: dict[str, Any]) -> State:
    """The tensors of the audio VAE and the vocoder, of a whole config, under their published names."""
    weights: State = {}
    for name, value in AudioVAE({"config": json.dumps(config)}).state_dict().items():
        part, _, rest = name.partition(".")
        shape = tuple(value.shape)
        if part == "vocoder":
            weights[name] = codecs.vocoder(rest, shape, value)
        else:
            weights[f"audio_vae.{rest}"] = codecs.audio_vae(rest, shape)
    return weights


def upscaler(kind: str, config: dict[str, Any] | None = None) -> State:
    """A latent upscaler's tensors; `kind` is spatial or temporal, `config` the tiny one's unless given."""
    model = LatentUpsampler.from_config(config or upscaler_config(kind), operations=comfy.ops.disable_weight_init)
    factor = 4 if kind == "spatial" else 2
    return {
        name: codecs.upscaler(name, tuple(value.shape), factor).bfloat16() for name, value in model.state_dict().items()
    }
