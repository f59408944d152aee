"""LTX-2.5's text encoder: Gemma 4 12B and its projection in one file, in core's own classes, HLWQ weights packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..hlwq_core.checkpoints.checkpoint import Checkpoint
from ..hlwq_core.errors import IncompleteError, InputError, UnsupportedError
from ..hlwq_core.models import ltx25
from ..hlwq_core.running.packed_tensor import is_packed
from .compat import gemma4
from .running.packed_ops import PackedOperations
from .running.patchers import adopt

PROJECTION = "text_embedding_projection.{}_aggregate_embed.weight"
CONNECTOR = "model.diffusion_model.{}_embeddings_connector.learnable_registers"
STREAMS = ("video", "audio")
LAYERS = 48
# Layers that attend to everything have no values of their own: they take the keys.
_GLOBAL = 6

State = dict[str, torch.Tensor]


def is_gemma4(names: dict[str, Any]) -> bool:
    """Whether tensors under ComfyUI's names are those of a Gemma 4, also if some are missing."""
    return any(name.startswith("model.layers.") and name.endswith(".layer_scalar") for name in names)


def needed() -> list[str]:
    """The tensors of the language model and the projection that encoding a prompt needs."""
    names = ["tokenizer_json", "model.embed_tokens.weight", "model.norm.weight"]
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        values = () if layer % _GLOBAL == _GLOBAL - 1 else ("v_proj",)
        names += [f"{prefix}self_attn.{name}.weight" for name in ("q_proj", "k_proj", *values, "o_proj")]
        names += [f"{prefix}self_attn.{name}.weight" for name in ("q_norm", "k_norm")]
        names += [f"{prefix}mlp.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")]
        norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
        names += [f"{prefix}{name}_layernorm.weight" for name in norms]
        names.append(f"{prefix}layer_scalar")
    return [*names, *(PROJECTION.format(stream) for stream in STREAMS)]


def check(state: State, path: Path, checkpoint: Checkpoint) -> None:
    """Every tensor is there, and the projection fits the checkpoint's connectors.

    Raises:
        UnsupportedError: this ComfyUI does not know Gemma 4.
        IncompleteError: a tensor is missing.
        InputError: projection and checkpoint are of two models.
    """
    files = ltx25.ENCODER.files
    if not gemma4.known():
        raise UnsupportedError(
            f"{ltx25.ENCODER.name} needs ComfyUI {ltx25.FAMILY.comfyui} or newer",
            file=path,
            expected=f"ComfyUI {ltx25.FAMILY.comfyui} or newer",
            found="one that does not know Gemma 4",
            fix="update ComfyUI",
        )
    missing = [name for name in needed() if name not in state]
    if missing:
        what = "projection" if all("text_embedding_projection" in name for name in missing) else "tensor"
        raise IncompleteError(
            f"the text encoder has no {what} that {ltx25.FAMILY.name} needs"
            if what == "projection"
            else f"{len(missing)} tensors of the text encoder are in none of the files",
            file=path,
            tensor=missing[0],
            expected="Gemma 4 12B and the text projection in one file",
            found=f"{len(state)} tensors, {len(missing)} of those needed are missing",
            fix=f"use {files}, or the HLWQ form of it",
        )
    for stream in STREAMS:
        connector = CONNECTOR.format(stream)
        name = next((n for n in (connector, connector.removeprefix("model.diffusion_model.")) if n in checkpoint), None)
        if name is None:
            continue
        width, rows = checkpoint.plain_info(name)[0][1], state[PROJECTION.format(stream)].shape[0]
        if rows != width:
            raise InputError(
                "the text encoder's projection and the checkpoint do not fit together",
                file=path,
                tensor=PROJECTION.format(stream),
                expected=f"{width} rows, as {name} of {checkpoint.path} is wide",
                found=f"{rows} rows",
                fix="choose the text encoder that belongs to this checkpoint",
            )


def clip(state: State, device: str, disable_dynamic: bool) -> Any:
    """ComfyUI's CLIP of the tensors; packed ones stay packed."""
    packed = any(map(is_packed, state.values()))
    options: dict[str, Any] = {"custom_operations": PackedOperations} if packed else {}
    if device == "cpu":
        options["load_device"] = options["offload_device"] = torch.device("cpu")
    made = gemma4.load(state, options, disable_dynamic)
    if packed:
        adopt(made.patcher)
    return made
