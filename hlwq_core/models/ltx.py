"""What all LTX with sound (LTX-2 and later) have in common: their parts, the transformer's tensors, the config's meaning.

Source of the tensors' names: ComfyUI's `comfy/ldm/lightricks/{model,av_model,embeddings_connector}.py`, 0.30.0 and of
2026-08-22; a test compares them with what these build.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ..format.sizes import BLOCK
from .family import DIFFUSION, TRANSFORMER, Contradiction, Family, Limits, Part, Shapes, Values

DATA = Path(__file__).parents[1] / "data"
PROJECTION, VIDEO_VAE, AUDIO_VAE = "text projection", "video VAE", "audio VAE"
PROJECTION_PREFIX = "text_embedding_projection."
# Video VAEs whose decoder is made of convolutions, and of LTX-2.5 one that diffuses.
CONVOLUTIONS, DIFFUSES = "vae.decoder.up_blocks.", "vae.decoder.conv_in_x_t."


def parts(
    video: tuple[str, ...] = (), audio: tuple[str, ...] = (), projection: tuple[str, ...] = ()
) -> tuple[Part, ...]:
    """The parts of an LTX; a version's own marks where the others have parts of another make."""
    return (
        Part(TRANSFORMER, (DIFFUSION,)),
        Part(
            PROJECTION, (PROJECTION_PREFIX,), "the text encoder's own file, or a checkpoint that holds it", projection
        ),
        Part(VIDEO_VAE, ("vae.",), "Load VAE", video),
        Part(AUDIO_VAE, ("audio_vae.", "vocoder."), "Load VAE", audio),
    )


PARTS = parts()
# LTX-2's transformer projects the prompt itself.
CAPTIONS = (f"{DIFFUSION}caption_projection.", f"{DIFFUSION}audio_caption_projection.")
# 32 pixels a latent, 8 frames a latent but for the first.
LIMITS = Limits(size=32, frames=8)

_BLOCK = re.compile(rf"^{re.escape(DIFFUSION)}transformer_blocks\.(\d+)\.")
_ATTENTIONS = ("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")
_TABLES = ("scale_shift_table", "audio_scale_shift_table")
_CROSS_TABLES = ("scale_shift_table_a2v_ca_audio", "scale_shift_table_a2v_ca_video")
_PROMPT_TABLES = ("prompt_scale_shift_table", "audio_prompt_scale_shift_table")
_MODULATIONS = (
    "adaln_single",
    "audio_adaln_single",
    "av_ca_video_scale_shift_adaln_single",
    "av_ca_a2v_gate_adaln_single",
    "av_ca_audio_scale_shift_adaln_single",
    "av_ca_v2a_gate_adaln_single",
)
_PROMPT_MODULATIONS = ("prompt_adaln_single", "audio_prompt_adaln_single")


def is_ltx(names: Collection[str]) -> bool:
    """Whether tensor names are those of an LTX model with sound, also if some are missing."""
    return any(
        name.startswith((f"{DIFFUSION}audio_adaln_single.", f"{DIFFUSION}audio_patchify_proj."))
        or (name.startswith(f"{DIFFUSION}transformer_blocks.") and ".audio_attn1." in name)
        for name in names
    )


def transformer(values: Values) -> list[str]:
    """The names of the transformer's tensors, as ComfyUI builds it of the `transformer` of a config."""
    return [DIFFUSION + name for name in _transformer(values)]


def _transformer(values: Values) -> Iterator[str]:
    gated, prompt = values.get("apply_gated_attention", False), values.get("cross_attention_adaln", False)
    for name in ("patchify_proj", "audio_patchify_proj", "proj_out", "audio_proj_out"):
        yield from _linear(name)
    yield from _TABLES
    if values.get("use_keyframes_abs_pos_embedding", False):
        yield "keyframes_abs_pos_embedding"
    modulated = prompt and values.get("use_prompt_adaln_single", True)
    for name in _MODULATIONS + (_PROMPT_MODULATIONS if modulated else ()):
        for layer in ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear"):
            yield from _linear(f"{name}.{layer}")
    yield from _captions(values)
    for stream in ("audio", "video"):
        yield from _connector(f"{stream}_embeddings_connector.", values)
    for number in range(values.get("num_layers", 48)):
        block = f"transformer_blocks.{number}."
        for attention in _ATTENTIONS:
            yield from _attention(f"{block}{attention}.", gated)
        yield from _feed_forward(f"{block}ff.", values.get("ff_bias", True))
        yield from _feed_forward(f"{block}audio_ff.", values.get("audio_ff_bias", True))
        for table in _TABLES + _CROSS_TABLES + (_PROMPT_TABLES if prompt else ()):
            yield block + table


def _captions(values: Values) -> Iterator[str]:
    layers: tuple[str, ...] = ("linear_1", "linear_2")
    if values.get("caption_proj_before_connector", False):
        layers = ("linear_1",) if values.get("caption_projection_first_linear", True) else ()
    for name in ("caption_projection", "audio_caption_projection"):
        for layer in layers:
            yield from _linear(f"{name}.{layer}")


def _connector(prefix: str, values: Values) -> Iterator[str]:
    yield f"{prefix}learnable_registers"
    for number in range(values.get("connector_num_layers", 2)):
        block = f"{prefix}transformer_1d_blocks.{number}."
        yield from _attention(f"{block}attn1.", values.get("connector_apply_gated_attention", False))
        yield from _feed_forward(f"{block}ff.", True)


def _linear(name: str, bias: bool = True) -> Iterator[str]:
    yield f"{name}.weight"
    if bias:
        yield f"{name}.bias"


def _attention(prefix: str, gated: bool) -> Iterator[str]:
    for name in ("to_q", "to_k", "to_v", "to_out.0", *(["to_gate_logits"] if gated else [])):
        yield from _linear(prefix + name)
    yield from (f"{prefix}q_norm.weight", f"{prefix}k_norm.weight")


def _feed_forward(prefix: str, bias: bool) -> Iterator[str]:
    yield from _linear(f"{prefix}net.0.proj", bias)
    yield from _linear(f"{prefix}net.2", bias)


@functools.lru_cache(maxsize=1)
def form() -> Values:
    """The config of LTX-2.3: those of other versions have values of the same kinds, as far as they have the same keys."""
    values: Values = json.loads((DATA / "ltx23_config.json").read_text(encoding="utf-8"))
    return values


def check(config: Values, shapes: Shapes) -> list[Contradiction]:
    """What a config says and the tensors contradict: tensor (or group), expected, found. Absent tensors say nothing."""
    values = config.get("transformer", {})
    found: list[Contradiction] = []

    def compare(name: str, axis: int, meaning: str, value: int | None) -> None:
        if value is None or name not in shapes:
            return
        shape = shapes[name]
        # A packed weight's file does not always tell how wide a padded row is.
        if len(shape) <= axis or shape[axis] not in (value, -(-value // BLOCK) * BLOCK if axis == 1 else value):
            found.append((name, f"{meaning} = {value}", f"shape {list(shape)}"))

    def product(a: str, b: str) -> int | None:
        factors = values.get(a), values.get(b)
        return factors[0] * factors[1] if None not in factors else None

    blocks = 1 + max((int(m[1]) for m in map(_BLOCK.match, shapes) if m), default=values.get("num_layers", 0) - 1)
    if blocks > values.get("num_layers", blocks):
        found.append((f"{DIFFUSION}transformer_blocks", f"num_layers = {values['num_layers']}", f"{blocks} blocks"))
    video = product("num_attention_heads", "attention_head_dim")
    audio = product("audio_num_attention_heads", "audio_attention_head_dim")
    compare(f"{DIFFUSION}patchify_proj.weight", 0, "num_attention_heads · attention_head_dim", video)
    compare(f"{DIFFUSION}patchify_proj.weight", 1, "in_channels", values.get("in_channels"))
    compare(f"{DIFFUSION}proj_out.weight", 0, "out_channels", values.get("out_channels"))
    compare(f"{DIFFUSION}audio_patchify_proj.weight", 0, "audio_num_attention_heads · audio_attention_head_dim", audio)
    compare(f"{DIFFUSION}audio_proj_out.weight", 0, "audio_out_channels", values.get("audio_out_channels"))
    block = f"{DIFFUSION}transformer_blocks.0"
    compare(f"{block}.attn2.to_k.weight", 1, "cross_attention_dim", values.get("cross_attention_dim"))
    compare(f"{block}.audio_attn2.to_k.weight", 1, "audio_cross_attention_dim", values.get("audio_cross_attention_dim"))
    vae: dict[str, Any] = config.get("vae", {})
    compare("vae.decoder.conv_in.conv.weight", 1, "latent_channels", vae.get("latent_channels"))
    compare("vae.encoder.conv_in.conv.weight", 0, "encoder_base_channels", vae.get("encoder_base_channels"))
    for part, prefix in (("vocoder", "vocoder.vocoder"), ("bwe", "vocoder.bwe_generator")):
        channels = config.get("vocoder", {}).get(part, {}).get("upsample_initial_channel")
        compare(f"{prefix}.conv_pre.weight", 0, f"{part}.upsample_initial_channel", channels)
    return found


# What no version recognises as its own.
FAMILY = Family(
    key="ltx",
    name="LTX with sound, of an unknown version",
    full="LTX of an unknown version",
    is_one=is_ltx,
    needed=lambda config: {},
    parts=PARTS,
    form=form,
    known=False,
    limits=LIMITS,
)
