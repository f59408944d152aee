"""Core's loader of text encoders, which knows Gemma 4 since 0.32.0. Source: ComfyUI of 2026-08-22, `comfy/sd.py`."""

from __future__ import annotations

from typing import Any

import folder_paths
import torch

from . import contract
from .contract import Feature

_sd = contract.module("comfy.sd")


def known() -> bool:
    """Whether this ComfyUI knows Gemma 4 12B as a text encoder of LTX."""
    return contract.works(Feature.GEMMA_4) and hasattr(_sd.TEModel, "GEMMA_4_12B")


def load(state: dict[str, torch.Tensor], model_options: dict[str, Any], disable_dynamic: bool) -> Any:
    """A CLIP of a text encoder's tensors, by core's own detection."""
    return _sd.load_text_encoder_state_dicts(
        [state],
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        clip_type=_sd.CLIPType.LTXV,
        model_options=model_options,
        disable_dynamic=disable_dynamic,
    )
