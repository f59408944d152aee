"""Every name of ComfyUI outside its public API that the pack touches, and the version floor. Nothing else imports `comfy.*`.

Sources: ComfyUI 0.30.0, `comfy/{ops,model_patcher,lora,sd,model_management,utils,patcher_extension,hooks}.py`.
"""

from __future__ import annotations

import inspect
from typing import Any

import comfy.cli_args
import comfy.clip_model
import comfy.hooks
import comfy.ldm.modules.attention
import comfy.lora
import comfy.memory_management
import comfy.model_management
import comfy.model_patcher
import comfy.nested_tensor
import comfy.ops
import comfy.patcher_extension
import comfy.sd
import comfy.sd1_clip
import comfy.text_encoders.hunyuan_video
import comfy.text_encoders.llama
import comfy.text_encoders.lt
import comfy.utils
import comfy.weight_adapter
import comfy_aimdo.model_vbar
import comfy_aimdo.torch
import folder_paths
import torch
from comfy.ldm.lightricks.latent_upsampler import LatentUpsampler
from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE

__all__ = [
    "CLIP",
    "CLIPVision",
    "CallbacksMP",
    "LatentUpsampler",
    "LowVramPatch",
    "ModelPatcher",
    "ModelPatcherDynamic",
    "ProgressBar",
    "SDClipModel",
    "VAE",
    "WeightAdapterBase",
    "aimdo_to_tensor",
    "attention_pytorch",
    "cast_bias_weight",
    "core_patcher_class",
    "disable_weight_init",
    "folder_paths",
    "get_key_weight",
    "hooks",
    "llama",
    "llama_detect",
    "load_diffusion_model_state_dict",
    "lora",
    "lt",
    "manual_cast",
    "model_management",
    "model_vbar",
    "run_every_op",
    "uncast_bias_weight",
    "unet_prefix",
    "utils",
]

model_vbar = comfy_aimdo.model_vbar
# The function itself, as overrides of the attention are given it.
attention_pytorch = inspect.unwrap(comfy.ldm.modules.attention.attention_pytorch)
aimdo_to_tensor = comfy_aimdo.torch.aimdo_to_tensor
CallbacksMP = comfy.patcher_extension.CallbacksMP
LowVramPatch = comfy.model_patcher.LowVramPatch
ModelPatcher = comfy.model_patcher.ModelPatcher
ModelPatcherDynamic = comfy.model_patcher.ModelPatcherDynamic
ProgressBar = comfy.utils.ProgressBar
VAE = comfy.sd.VAE
WeightAdapterBase = comfy.weight_adapter.WeightAdapterBase
cast_bias_weight = comfy.ops.cast_bias_weight
disable_weight_init = comfy.ops.disable_weight_init
get_key_weight = comfy.model_patcher.get_key_weight
hooks = comfy.hooks
load_diffusion_model_state_dict = comfy.sd.load_diffusion_model_state_dict
lora = comfy.lora
manual_cast = comfy.ops.manual_cast
model_management = comfy.model_management
run_every_op = comfy.ops.run_every_op
uncast_bias_weight = comfy.ops.uncast_bias_weight
utils = comfy.utils


def core_patcher_class(disable_dynamic: bool = False) -> type:
    """The patcher class that ComfyUI uses in this process: decided at its start, hence not a constant here."""
    return ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher


def take_resident(module: torch.nn.Module, device: torch.device) -> tuple[Any, Any, Any] | None:
    """Weight and bias of a layer that dynamic VRAM has on `device`, as `cast_bias_weight` would give them, in a quarter of
    the host's time. The third item goes to `release_resident` after use. None: ask `cast_bias_weight`."""
    state = module.__dict__
    allocation = state.get("_v")
    if allocation is None or module._parameters["weight"].device == device:
        return None
    prefetch = state.get("_prefetch")
    if prefetch is not None:  # looked at, and held, for the whole block
        return (state["_v_weight"], state["_v_bias"], None) if prefetch["resident"] else None
    signature = model_vbar.vbar_fault(allocation)
    if signature is None:
        return None
    if model_vbar.vbar_signature_compare(signature, state.get("_v_signature")):
        return state["_v_weight"], state["_v_bias"], allocation
    model_vbar.vbar_unpin(allocation)
    return None


def release_resident(held: Any) -> None:
    """Let dynamic VRAM take a layer's memory again, if it needs it."""
    model_vbar.vbar_unpin(held)


def file_source() -> Any:
    """How to map files so that dynamic VRAM reads weights from the disk straight to the card, as it does with core's own
    files; None where ComfyUI runs without it."""
    if not comfy.memory_management.aimdo_enabled:
        return None
    return lambda path: comfy.utils.load_torch_file(str(path))


def unet_prefix(state_dict: dict[str, torch.Tensor]) -> str:
    """The prefix under which a checkpoint holds its diffusion model, `""` where there is none."""
    prefix = comfy.model_detection.unet_prefix_from_state_dict(state_dict)
    return prefix if any(name.startswith(prefix) for name in state_dict) else ""


# ---- latents, upscalers, saving (upscale_latent.py, save_audio_video.py) ---------------------------------------------


def latent_parts(samples: Any) -> list[torch.Tensor]:
    """The tensors of a latent: [video], or [video, audio] of a joint one."""
    return list(samples.unbind()) if getattr(samples, "is_nested", False) else [samples]


def join_latents(parts: list[torch.Tensor]) -> Any:
    """A joint latent of [video, audio]."""
    return comfy.nested_tensor.NestedTensor(parts)


def video_vae_channels(vae: Any) -> int | None:
    """The latent channels of LTX's video VAE; None for any other VAE."""
    model = getattr(vae, "first_stage_model", None)
    if not isinstance(model, VideoVAE):
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


def metadata_wanted() -> bool:
    """False under --disable-metadata: saved files then carry no workflow."""
    return not comfy.cli_args.args.disable_metadata


# Text encoder: nodes/gemma.py and nodes/text_encoder.py.
CLIP = comfy.sd.CLIP
CLIPVision = comfy.clip_model.CLIPVision
SDClipModel = comfy.sd1_clip.SDClipModel
llama = comfy.text_encoders.llama
llama_detect = comfy.text_encoders.hunyuan_video.llama_detect
lt = comfy.text_encoders.lt
