"""Every name of ComfyUI outside its public API that the pack touches. Nothing else imports `comfy.*`.

`table.py` names them all; `contract.py` compares it with the ComfyUI that runs, as this is imported. What is gone then has a
stand-in here that can be named and derived from, and refuses to be used.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Collection, Iterator
from typing import Any

import folder_paths

from . import contract
from .contract import Feature, reason, require, what_is_off, why_not, works
from .table import TABLE

contract.check(TABLE)

from .attention import (  # noqa: E402  they ask what works
    ATTENTION_OVERRIDE,
    arithmetic,
    attention_function,
    defined_in,
    is_cores_override,
)
from .dynamic_vram import (  # noqa: E402
    Arrival,
    Reader,
    Whereabouts,
    aimdo_to_tensor,
    allocation_bytes,
    arrive,
    awaits_first_load,
    file_source,
    model_vbar,
    others_make_room,
    pins_memory,
    places_kept,
    release_resident,
    room_on_card,
    take_resident,
    unused_memory,
    use_again,
)
from .ltx import (  # noqa: E402
    BLOCKS,
    FORWARD,
    LatentUpsampler,
    attention_with_guide_mask,
    blocks_can_be_recorded,
    blocks_can_be_split,
    is_guide_mask,
    join_latents,
    lasting_memory,
    latent_parts,
    ltx_blocks,
    memory_is_compiled,
    positions_of,
    text_encoder_takes_sizes,
    timesteps_of,
    uncompiled,
    upsample_latent,
    upscaler_kind,
    video_vae_channels,
)
from .several import (  # noqa: E402
    BOOT,
    InterruptProcessingException,
    adapter_name,
    adapter_named,
    is_interrupted,
    load_for_sampling,
    same_comfyui,
    take_patches,
)

__all__ = [
    "ATTENTION_OVERRIDE",
    "Arrival",
    "BLOCKS",
    "BOOT",
    "BypassForwardHook",
    "CLIP",
    "CLIPVision",
    "CallbacksMP",
    "DualLinearProjection",
    "EnumHookMode",
    "FORWARD",
    "Feature",
    "Gemma3MultiModalProjector",
    "Gemma3_12B",
    "Gemma3_12BModel",
    "Gemma3_12B_Config",
    "InterruptProcessingException",
    "LTXAVGemmaTokenizer",
    "LTXAVTEModel",
    "LatentUpsampler",
    "Llama2_",
    "LowVramPatch",
    "ModelPatcher",
    "ModelPatcherDynamic",
    "ProgressBar",
    "Reader",
    "SDClipModel",
    "VAE",
    "WeightAdapterBase",
    "Whereabouts",
    "WrappersMP",
    "adapter_name",
    "adapter_named",
    "aimdo_to_tensor",
    "allocation_bytes",
    "arithmetic",
    "around_sampling",
    "arrive",
    "attention_function",
    "attention_pytorch",
    "attention_with_guide_mask",
    "awaits_first_load",
    "blocks_can_be_recorded",
    "blocks_can_be_split",
    "calculate_weight",
    "cast_bias_weight",
    "contract",
    "core_patcher_class",
    "defined_in",
    "disable_weight_init",
    "file_source",
    "folder_paths",
    "get_key_weight",
    "is_cores_override",
    "is_guide_mask",
    "is_interrupted",
    "join_latents",
    "lasting_memory",
    "latent_parts",
    "llama_detect",
    "load_diffusion_model_state_dict",
    "load_for_sampling",
    "ltx_blocks",
    "manual_cast",
    "memory_is_compiled",
    "metadata_wanted",
    "model_management",
    "model_vbar",
    "others_make_room",
    "pins_memory",
    "places_kept",
    "positions_of",
    "reason",
    "release_resident",
    "require",
    "room_on_card",
    "run_every_op",
    "same_comfyui",
    "take_patches",
    "take_resident",
    "text_encoder_takes_sizes",
    "timesteps_of",
    "uncast_bias_weight",
    "uncompiled",
    "unet_prefix",
    "uninterrupted",
    "unused_memory",
    "upsample_latent",
    "upscaler_kind",
    "use_again",
    "utils",
    "video_vae_channels",
    "what_is_off",
    "why_not",
    "works",
]

BypassForwardHook = contract.get("comfy.weight_adapter.bypass.BypassForwardHook")
CLIP = contract.get("comfy.sd.CLIP")
CLIPVision = contract.get("comfy.clip_model.CLIPVision")
CallbacksMP = contract.get("comfy.patcher_extension.CallbacksMP")
DualLinearProjection = contract.get("comfy.text_encoders.lt.DualLinearProjection")
EnumHookMode = contract.get("comfy.hooks.EnumHookMode")
Gemma3MultiModalProjector = contract.get("comfy.text_encoders.llama.Gemma3MultiModalProjector")
Gemma3_12B = contract.get("comfy.text_encoders.llama.Gemma3_12B")
Gemma3_12BModel = contract.get("comfy.text_encoders.lt.Gemma3_12BModel")
Gemma3_12B_Config = contract.get("comfy.text_encoders.llama.Gemma3_12B_Config")
LTXAVGemmaTokenizer = contract.get("comfy.text_encoders.lt.LTXAVGemmaTokenizer")
LTXAVTEModel = contract.get("comfy.text_encoders.lt.LTXAVTEModel")
Llama2_ = contract.get("comfy.text_encoders.llama.Llama2_")
LowVramPatch = contract.get("comfy.model_patcher.LowVramPatch")
ModelPatcher = contract.get("comfy.model_patcher.ModelPatcher")
ModelPatcherDynamic = contract.get("comfy.model_patcher.ModelPatcherDynamic")
WrappersMP = contract.get("comfy.patcher_extension.WrappersMP")
ProgressBar = contract.get("comfy.utils.ProgressBar")
SDClipModel = contract.get("comfy.sd1_clip.SDClipModel")
VAE = contract.get("comfy.sd.VAE")
WeightAdapterBase = contract.get("comfy.weight_adapter.base.WeightAdapterBase")
# The function itself, as overrides of the attention are given it.
attention_pytorch = inspect.unwrap(contract.get("comfy.ldm.modules.attention.attention_pytorch"))
calculate_weight = contract.get("comfy.lora.calculate_weight")
cast_bias_weight = contract.get("comfy.ops.cast_bias_weight")
disable_weight_init = contract.get("comfy.ops.disable_weight_init")
get_key_weight = contract.get("comfy.model_patcher.get_key_weight")
llama_detect = contract.get("comfy.text_encoders.hunyuan_video.llama_detect")
load_diffusion_model_state_dict = contract.get("comfy.sd.load_diffusion_model_state_dict")
manual_cast = contract.get("comfy.ops.manual_cast")
model_management = contract.module("comfy.model_management")
run_every_op = contract.get("comfy.ops.run_every_op")
uncast_bias_weight = contract.get("comfy.ops.uncast_bias_weight")
utils = contract.module("comfy.utils")

_args = contract.module("comfy.cli_args").args
_model_patcher = contract.module("comfy.model_patcher")
_ops = contract.module("comfy.ops")
_unet_prefix_from_state_dict = contract.get("comfy.model_detection.unet_prefix_from_state_dict")


def core_patcher_class(disable_dynamic: bool = False) -> type:
    """The patcher class that ComfyUI uses in this process: decided at its start, hence not a constant here."""
    return ModelPatcher if disable_dynamic else _model_patcher.CoreModelPatcher


def around_sampling(patcher: Any, key: str, wrapper: Any, mark: str) -> Any:
    """A clone of a patcher whose sampling runs are called through `wrapper(run, *args)`; `run.class_obj` is the guider. `mark` is put
    into `transformer_options`, for who has to know."""
    clone = patcher.clone()
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, key, wrapper)
    options = clone.model_options
    clone.model_options = options | {"transformer_options": options.get("transformer_options", {}) | {mark: True}}
    return clone


_uninterrupted = threading.Lock()
_stretches: list[tuple[Any, Any]] = []


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """A stretch that the user's interruption ends after, not within. Where threads have one each, the last to end ends it."""
    names = globals()
    with _uninterrupted:
        _stretches.append(_stretches[0] if _stretches else (_ops.run_every_op, names["run_every_op"]))
        _ops.run_every_op = names["run_every_op"] = lambda: None
    try:
        yield
    finally:
        with _uninterrupted:
            before = _stretches.pop()
            if not _stretches:
                _ops.run_every_op, names["run_every_op"] = before


def unet_prefix(state_dict: Collection[str]) -> str:
    """The prefix under which a checkpoint holds its diffusion model, `""` where there is none."""
    prefix = _unet_prefix_from_state_dict(state_dict)
    return prefix if any(name.startswith(prefix) for name in state_dict) else ""


def metadata_wanted() -> bool:
    """False under --disable-metadata: saved files then carry no workflow."""
    return contract.works(Feature.METADATA) and not _args.disable_metadata
