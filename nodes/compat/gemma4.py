"""Gemma 4 as a text encoder, which ComfyUI knows since 0.32.0: its classes, and what its loader of text encoders does.

Source: ComfyUI 0.32.0 to 2026-08-22, `comfy/sd.py` (load_text_encoder_state_dicts), `comfy/text_encoders/{gemma4,lt}.py`.
"""

from __future__ import annotations

from typing import Any

import torch

from . import contract
from .contract import Feature

_sd = contract.module("comfy.sd")
_gemma4 = contract.module("comfy.text_encoders.gemma4")
_lt = contract.module("comfy.text_encoders.lt")

Gemma4_12B = contract.get("comfy.text_encoders.gemma4.Gemma4_12B")
Gemma4_12B_Config = contract.get("comfy.text_encoders.gemma4.Gemma4_12B_Config")


def known() -> bool:
    """Whether this ComfyUI knows Gemma 4 12B as a text encoder of LTX."""
    return contract.works(Feature.GEMMA_4) and hasattr(_sd.TEModel, "GEMMA_4_12B")


def encoder(language: type, before: type, detected: dict[str, Any], state: dict[str, torch.Tensor]) -> Any:
    """The class of LTX's text encoder over a language model.

    Args:
        language: a Gemma 4.
        before: mixed into its wrapper.
        detected: what ComfyUI's `llama_detect` says of the tensors.
        state: the tensors, of which the projection's shapes are read.
    """
    wrapper: type = _gemma4.gemma4_text_encoder_model(language)
    return _lt.ltxav_te(
        **detected,
        **_lt.sd_detect([state]),
        text_encoder_model=type(wrapper.__name__, (before, wrapper), {}),
        text_encoder_key="gemma4",
    )


def sized(config: Any) -> type:
    """ComfyUI's Gemma 4 12B of another config: a class, of which its wrapper makes one."""

    class SizedGemma4(Gemma4_12B):  # type: ignore[misc, valid-type]
        def __init__(self, config_dict: dict[str, Any], dtype: Any, device: Any, operations: Any):
            torch.nn.Module.__init__(self)
            self._init_model(config, dtype, device, operations)

    return SizedGemma4


def tokenizer() -> Any:
    """The class of its tokenizer, which is given `tokenizer_json`."""
    return _lt.ltxav_gemma4_tokenizer(Gemma4_12B.tokenizer)
