"""LTX-2.5's text encoder: Gemma 4 12B and its projection in one file, in the widths that the file has; HLWQ weights packed.

The computation is ComfyUI's own classes'; only the widths that their config fixes are given from outside.
Source: ComfyUI 0.32.0 to 2026-08-22, `comfy/text_encoders/{gemma4,lt}.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ..hlwq_core.checkpoints.checkpoint import Checkpoint
from ..hlwq_core.errors import IncompleteError, InputError, UnsupportedError
from ..hlwq_core.models import ltx25
from ..hlwq_core.running.packed_tensor import is_packed
from . import compat
from .compat import gemma4
from .gemma import check_weights, width
from .running.packed_ops import PackedOperations
from .running.patchers import adopt
from .unpadded import Unpadded

PROJECTION = "text_embedding_projection.{}_aggregate_embed.weight"
CONNECTOR = "model.diffusion_model.{}_embeddings_connector.learnable_registers"
STREAMS = ("video", "audio")
LAYERS = 48
# Every sixth layer attends to everything; it has no values of its own, but takes the keys.
_GLOBAL = 6

State = dict[str, torch.Tensor]


def is_gemma4(names: dict[str, Any]) -> bool:
    """Whether tensors under ComfyUI's names are those of a Gemma 4, also if some are missing."""
    return any(name.startswith("model.layers.") and name.endswith(".layer_scalar") for name in names)


def _is_global(layer: int) -> bool:
    return layer % _GLOBAL == _GLOBAL - 1


def needed() -> list[str]:
    """The tensors of the language model and the projection that encoding a prompt needs."""
    ones = Sizes(1, 1, 1, 1, 1, 1, 1, 1, None)
    return ["tokenizer_json", *(name for name, _ in ones.weights()), *map(PROJECTION.format, STREAMS)]


@dataclass(frozen=True)
class Vision:
    """Widths of what embeds a picture's patches, which prompt enhancement with a picture uses."""

    width: int
    patch: int
    positions: int


@dataclass(frozen=True)
class Sizes:
    """Widths of a Gemma 4 with 48 layers."""

    vocabulary: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    global_kv_heads: int
    head: int
    global_head: int
    vision: Vision | None

    @classmethod
    def read(cls, shapes: Mapping[str, tuple[int, ...]]) -> Sizes:
        """From shapes under ComfyUI's names. Rows and vectors only: columns of quantized weights may be packed.

        Raises:
            KeyError: a tensor that tells a width is missing, or tells none; the key is its name.
        """
        near, far = "model.layers.0.", f"model.layers.{_GLOBAL - 1}."
        head, global_head = (width(shapes, f"{layer}self_attn.q_norm.weight", 1) for layer in (near, far))
        return cls(
            vocabulary=width(shapes, "model.embed_tokens.weight"),
            hidden=width(shapes, "model.norm.weight", 1),
            intermediate=width(shapes, near + "mlp.gate_proj.weight"),
            heads=width(shapes, near + "self_attn.q_proj.weight") // head,
            kv_heads=width(shapes, near + "self_attn.k_proj.weight") // head,
            global_kv_heads=width(shapes, far + "self_attn.k_proj.weight") // global_head,
            head=head,
            global_head=global_head,
            vision=cls._vision(shapes),
        )

    @staticmethod
    def _vision(shapes: Mapping[str, tuple[int, ...]]) -> Vision | None:
        if "vision_model.patch_dense.weight" not in shapes:
            return None
        return Vision(
            width=width(shapes, "vision_model.patch_dense.weight"),
            patch=round((width(shapes, "vision_model.patch_ln1.weight") / 3) ** 0.5),
            positions=width(shapes, "vision_model.pos_embedding", 3),
        )

    def weights(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every tensor that the language model needs."""
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        yield "model.norm.weight", (self.hidden,)
        for layer in range(LAYERS):
            prefix, everywhere = f"model.layers.{layer}.", _is_global(layer)
            head = self.global_head if everywhere else self.head
            queries, keys = self.heads * head, (self.global_kv_heads if everywhere else self.kv_heads) * head
            yield f"{prefix}self_attn.q_proj.weight", (queries, self.hidden)
            for name in ("k_proj",) if everywhere else ("k_proj", "v_proj"):
                yield f"{prefix}self_attn.{name}.weight", (keys, self.hidden)
            yield f"{prefix}self_attn.o_proj.weight", (self.hidden, queries)
            for name in ("q_norm", "k_norm"):
                yield f"{prefix}self_attn.{name}.weight", (head,)
            for name in ("gate_proj", "up_proj"):
                yield f"{prefix}mlp.{name}.weight", (self.intermediate, self.hidden)
            yield f"{prefix}mlp.down_proj.weight", (self.hidden, self.intermediate)
            for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
                yield f"{prefix}{name}_layernorm.weight", (self.hidden,)
            yield f"{prefix}layer_scalar", (1,)

    def config(self) -> Any:
        """ComfyUI's config of Gemma 4 12B with these widths."""
        config = gemma4.Gemma4_12B_Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=LAYERS,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
        )
        # Class attributes there: no arguments of the constructor.
        config.head_dim, config.global_head_dim = self.head, self.global_head
        config.num_global_key_value_heads = self.global_kv_heads
        if self.vision is not None:
            config.vision_config = {
                **config.vision_config,
                "mm_embed_dim": self.vision.width,
                "output_proj_dims": self.vision.width,
                "model_patch_size": self.vision.patch,
                "mm_posemb_size": self.vision.positions,
            }
        return config


def check(state: State, path: Path, checkpoint: Checkpoint) -> Sizes:
    """The widths: every tensor is there and of its shape, and the projection fits the checkpoint's connectors.

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
    try:
        sizes = Sizes.read({name: tuple(value.shape) for name, value in state.items()})
    except KeyError as wrong:
        raise InputError(
            "a tensor of the text encoder has a shape that no Gemma 4 has",
            file=path,
            tensor=str(wrong.args[0]).partition(" ")[0],
            expected="the shapes of Gemma 4 12B",
            found=wrong.args[0],
            fix=f"the file is damaged: use {files}",
        ) from None
    columns = sizes.hidden * (LAYERS + 1)
    projections = [(name, (state[name].shape[0], columns)) for name in map(PROJECTION.format, STREAMS)]
    check_weights(state, [*sizes.weights(), *projections], path)
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
    return sizes


def clip(state: State, sizes: Sizes, device: str, disable_dynamic: bool) -> Any:
    """ComfyUI's CLIP of the tensors; packed ones stay packed."""
    packed = any(map(is_packed, state.values()))
    options: dict[str, Any] = {"custom_operations": PackedOperations} if packed else {}
    if device == "cpu":
        options["load_device"] = options["offload_device"] = torch.device("cpu")
    detected = compat.llama_detect(state)
    if packed:
        detected.pop("llama_quantization_metadata", None)
    target = gemma4.encoder(gemma4.sized(sizes.config()), Unpadded, detected, state)
    tokenizer_json = state.pop("tokenizer_json")
    made = compat.CLIP(
        SimpleNamespace(params={}, clip=target, tokenizer=gemma4.tokenizer()),
        embedding_directory=compat.folder_paths.get_folder_paths("embeddings"),
        tokenizer_data={"tokenizer_json": tokenizer_json},
        parameters=sum(value.nelement() for value in state.values()),
        state_dict=[state],
        model_options=options,
        disable_dynamic=disable_dynamic,
    )
    if packed:
        adopt(made.patcher)
    return made
