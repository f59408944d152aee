"""LTX: its blocks, its latents and upscalers, its text encoder, as ComfyUI has them.

Sources: ComfyUI 0.30.0 to 0.33.0, `comfy/ldm/lightricks`, `comfy/text_encoders/lt.py`, `comfy/model_prefetch.py`.
"""

from __future__ import annotations

import contextlib
import dis
import inspect
import threading
from typing import Any

import torch

from . import contract
from .contract import Feature

LatentUpsampler = contract.get("comfy.ldm.lightricks.latent_upsampler.LatentUpsampler")
VideoVAE = contract.get("comfy.ldm.lightricks.vae.causal_video_autoencoder.VideoVAE")
# LTX-2.5's, whose decoder diffuses; since 0.32.0.
DiffusionVAE = contract.get("comfy.ldm.lightricks.vae.na_diffusion_decoder.CausalDiffusionVAE")
_LTXVModel = contract.get("comfy.ldm.lightricks.model.LTXVModel")
_NestedTensor = contract.get("comfy.nested_tensor.NestedTensor")
_prefetch = contract.module("comfy.model_prefetch")
_CompressedTimestep = contract.get("comfy.ldm.lightricks.av_model.CompressedTimestep")
_GuideAttentionMask = contract.get("comfy.ldm.lightricks.model.GuideAttentionMask")
_LTXAVModel = contract.get("comfy.ldm.lightricks.av_model.LTXAVModel")
attention_with_guide_mask = contract.get("comfy.ldm.lightricks.model._attention_with_guide_mask")
_LTXAVTEModel = contract.get("comfy.text_encoders.lt.LTXAVTEModel")

# ---- blocks (recorded_blocks.py) ---------------------------------------------------------------------------------------


def blocks_can_be_recorded(model: torch.nn.Module) -> bool:
    """Whether a diffusion model runs its blocks by a method of LTX's, with no other arguments than those it had in 0.30.

    Not where ComfyUI's memory compiler is at work around them: it and a recording were never tried together."""
    if not contract.works(Feature.RECORDINGS) or contract.mentions(type(model), "malloc_graph_begin"):
        return False
    method = getattr(type(model), "_process_transformer_blocks", None)
    if method is None or not hasattr(model, "transformer_blocks"):
        return False
    known = ("self", "x", "context", "attention_mask", "timestep", "pe", "transformer_options", "self_attention_mask")
    # Whatever else is known of the step comes as `kwargs`, which the method must not look at.
    loads = [step.argval for step in dis.get_instructions(method) if step.opname.startswith("LOAD")]
    looked_at = any(name == "kwargs" or (type(name) is tuple and "kwargs" in name) for name in loads)
    return tuple(inspect.signature(method).parameters) == (*known, "kwargs") and not looked_at


def uncompiled(module: torch.nn.Module) -> torch.nn.Module:
    """The module itself, where torch.compile's stands for it."""
    inner: torch.nn.Module = getattr(module, "_orig_mod", module)
    return inner


def ltx_blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The transformer blocks of an LTX diffusion model; none of any other model."""
    model = uncompiled(model)
    blocks = [uncompiled(block) for block in getattr(model, "transformer_blocks", ())]
    family = contract.works(Feature.FEWER_PASSES) and isinstance(model, _LTXVModel)
    return [block for block in blocks if family and type(block).__module__.startswith("comfy.ldm.lightricks.")]


def memory_is_compiled() -> bool:
    """Whether ComfyUI's memory compiler is at work in this thread: what is allocated now is another's at the next step."""
    graphs = getattr(_prefetch, "MALLOC_GRAPHS", None)
    graph = graphs.get(threading.get_ident()) if isinstance(graphs, dict) else None
    return bool(getattr(graph, "_comfy_active", graph is not None))


def lasting_memory() -> Any:
    """Around what stays allocated after a step: kept out of what ComfyUI's memory compiler lays out anew at each step."""
    pause = getattr(_prefetch, "pause_malloc_graph", None)
    return contextlib.nullcontext() if pause is None else pause()


# ---- blocks on a part of the video's tokens (parallel/splitting.py) ----------------------------------------------------


# The diffusion model's methods that run a forward, behind all wrappers, and within it the blocks.
FORWARD, BLOCKS = "_forward", "_process_transformer_blocks"


def blocks_can_be_split(model: torch.nn.Module) -> bool:
    """Whether a diffusion model is LTX's of video and sound, by whose blocks' attentions tokens see one another."""
    return contract.works(Feature.SEVERAL_GPUS) and isinstance(model, _LTXAVModel)


def is_guide_mask(mask: Any) -> bool:
    """Whether a mask of the self-attention is LTX's own kind, which names queries by their place."""
    return isinstance(mask, _GuideAttentionMask)


class _PartOfTimesteps(_CompressedTimestep):  # type: ignore[misc, valid-type]
    """Values a frame, of tokens that neither begin nor end with one: `count` of them after `skipped` of the first frame."""

    __slots__ = ("batch_size", "count", "data", "feature_dim", "num_frames", "patches_per_frame", "skipped")

    def expand(self) -> torch.Tensor:
        return super().expand()[:, self.skipped : self.skipped + self.count]

    def expand_for_computation(self, *args: Any, **others: Any) -> tuple:
        whole = super().expand_for_computation(*args, **others)
        return tuple(value[:, self.skipped : self.skipped + self.count] for value in whole)


def timesteps_of(timestep: list[Any], tokens: int, own: slice) -> list[Any]:
    """The timesteps that LTX's blocks are given, for some of the video's tokens."""
    video, audio, [of_audio, of_video, to_video, from_video], *prompts = timestep
    video, of_video, to_video = (_part_of_timestep(value, tokens, own) for value in (video, of_video, to_video))
    return [video, audio, [of_audio, of_video, to_video, from_video], *prompts]


def _part_of_timestep(value: Any, tokens: int, own: slice) -> Any:
    if isinstance(value, torch.Tensor):  # [batch, tokens or 1, features]
        return value[:, own].contiguous() if value.shape[1] == tokens else value
    each = value.patches_per_frame
    if value.num_frames * each != tokens:  # one for all of them
        return value
    first, last = own.start // each, -(-own.stop // each)
    part = object.__new__(_PartOfTimesteps)
    part.batch_size, part.feature_dim, part.patches_per_frame = value.batch_size, value.feature_dim, each
    part.num_frames = last - first
    part.data = value.data[:, first:last].contiguous()
    part.skipped, part.count = own.start - first * each, own.stop - own.start
    return part


def positions_of(positions: list[Any], tokens: int, own: slice) -> list[Any]:
    """The positions that LTX's blocks are given, for some of the video's tokens."""
    video, audio = positions

    def part(position: Any) -> Any:
        rotation, *others = position  # [batch, tokens, heads, …]
        return (rotation[:, own].contiguous() if rotation.shape[1] == tokens else rotation, *others)

    return [tuple(part(position) for position in video), audio]


# ---- latents, upscalers (upscale_latent.py) ----------------------------------------------------------------------------


def latent_parts(samples: Any) -> list[torch.Tensor]:
    """The tensors of a latent: [video], or [video, audio] of a joint one."""
    return list(samples.unbind()) if getattr(samples, "is_nested", False) else [samples]


def join_latents(parts: list[torch.Tensor]) -> Any:
    """A joint latent of [video, audio]."""
    return _NestedTensor(parts)


def video_vae_channels(vae: Any) -> int | None:
    """The latent channels of LTX's video VAE, of either kind; None for any other VAE."""
    model = getattr(vae, "first_stage_model", None)
    if not isinstance(model, (VideoVAE, DiffusionVAE)):
        return None
    return model.per_channel_statistics.get_buffer("std-of-means").shape[0]


def upscaler_kind(upscaler: Any) -> str | None:
    """ "spatial" or "temporal" (or "spatial and temporal") for a loaded LTX upscaler, None for anything else."""
    model = getattr(upscaler, "model", None)
    if not isinstance(model, LatentUpsampler):
        return None
    kinds = [kind for kind in ("spatial", "temporal") if getattr(model, f"{kind}_upsample")]
    return " and ".join(kinds)


def upsample_latent(video: torch.Tensor, upscaler: Any, vae: Any) -> torch.Tensor:
    """One video latent through core's LTXVLatentUpsampler."""
    from comfy_extras.nodes_lt_upsampler import LTXVLatentUpsampler

    return LTXVLatentUpsampler.execute({"samples": video}, upscaler, vae).args[0]["samples"]


# ---- text encoder (gemma.py) -------------------------------------------------------------------------------------------


def text_encoder_takes_sizes() -> bool:
    """Whether the constructor of ComfyUI's text encoder is told the language model and the widths of the projection, as
    since 0.32.0."""
    parameters = inspect.signature(_LTXAVTEModel).parameters
    return {"text_encoder_model", "video_projection_dim", "audio_projection_dim"} <= parameters.keys()
