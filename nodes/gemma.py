"""LTX-2.3's text encoder (Gemma 3 and the projection of its 49 hidden states) in the widths that the files have.

ComfyUI's own classes hard-code Gemma 3 12B's, until 0.32.0 the projection's widths too. The computation is theirs; only
what their constructors fix is given from outside: such a constructor of ours sets all that theirs sets.
Source: ComfyUI 0.30.0 to 0.33.0, `comfy/text_encoders/{lt,llama}.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..hlwq_core.errors import IncompleteError, InputError
from . import compat
from .unpadded import Unpadded

LAYERS = 48  # LTX-2.3 projects the embeddings and 48 layers; core's loader knows the language model by layer 47

# Hugging Face's names to ComfyUI's, longest prefix first.
HUGGING_FACE = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("model.vision_tower.vision_model.", "vision_model."),
    ("vision_tower.vision_model.", "vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)


def core_name(name: str) -> str | None:
    """A tensor's name as ComfyUI's Gemma has it; None for the output head, which shares the embeddings."""
    if name.endswith("lm_head.weight"):
        return None
    for prefix, replacement in HUGGING_FACE:
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    return name


@dataclass(frozen=True)
class Vision:
    """Widths of the vision tower, which prompt enhancement with a picture uses."""

    hidden: int
    intermediate: int
    layers: int
    patch: int
    image: int


@dataclass(frozen=True)
class Sizes:
    """Widths of a Gemma 3."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    vision: Vision | None

    @classmethod
    def read(cls, shapes: Mapping[str, tuple[int, ...]]) -> Sizes:
        """From shapes under ComfyUI's names. Rows and vectors only: columns of quantized weights may be packed.

        Raises:
            KeyError: a tensor that tells a width is missing, or tells none; the key is its name.
        """
        first = "model.layers.0."
        head = width(shapes, first + "self_attn.q_norm.weight")
        return cls(
            vocabulary=width(shapes, "model.embed_tokens.weight"),
            hidden=width(shapes, "model.norm.weight"),
            intermediate=width(shapes, first + "mlp.gate_proj.weight"),
            layers=_count(shapes, "model.layers."),
            heads=width(shapes, first + "self_attn.q_proj.weight") // head,
            kv_heads=width(shapes, first + "self_attn.k_proj.weight") // head,
            head=head,
            vision=cls._vision(shapes),
        )

    @staticmethod
    def _vision(shapes: Mapping[str, tuple[int, ...]]) -> Vision | None:
        embedding = "vision_model.embeddings."
        if embedding + "patch_embedding.weight" not in shapes:
            return None
        hidden = width(shapes, embedding + "patch_embedding.weight", 4)
        patch = shapes[embedding + "patch_embedding.weight"][2]
        side = round(width(shapes, embedding + "position_embedding.weight") ** 0.5)
        return Vision(
            hidden=hidden,
            intermediate=width(shapes, "vision_model.encoder.layers.0.mlp.fc1.weight"),
            layers=_count(shapes, "vision_model.encoder.layers."),
            patch=patch,
            image=patch * side,
        )

    def weights(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every tensor that the language model needs."""
        queries, keys = self.heads * self.head, self.kv_heads * self.head
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        yield "model.norm.weight", (self.hidden,)
        for layer in range(self.layers):
            p = f"model.layers.{layer}."
            yield p + "self_attn.q_proj.weight", (queries, self.hidden)
            yield p + "self_attn.k_proj.weight", (keys, self.hidden)
            yield p + "self_attn.v_proj.weight", (keys, self.hidden)
            yield p + "self_attn.o_proj.weight", (self.hidden, queries)
            yield p + "self_attn.q_norm.weight", (self.head,)
            yield p + "self_attn.k_norm.weight", (self.head,)
            yield p + "mlp.gate_proj.weight", (self.intermediate, self.hidden)
            yield p + "mlp.up_proj.weight", (self.intermediate, self.hidden)
            yield p + "mlp.down_proj.weight", (self.hidden, self.intermediate)
            for norm in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
                yield f"{p}{norm}_layernorm.weight", (self.hidden,)

    def config(self) -> Any:
        """ComfyUI's config of Gemma 3 with these widths."""
        config = compat.Gemma3_12B_Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
        )
        config.head_dim = self.head  # a class attribute there: no argument of the constructor
        if self.vision is not None:
            config.vision_config = {
                **config.vision_config,
                "hidden_size": self.vision.hidden,
                "intermediate_size": self.vision.intermediate,
                "num_hidden_layers": self.vision.layers,
                "patch_size": self.vision.patch,
                "image_size": self.vision.image,
            }
        return config


def check_weights(
    state: Mapping[str, torch.Tensor], weights: Iterable[tuple[str, tuple[int, ...]]], path: Path
) -> None:
    """Every tensor of a text encoder is there, and of the shape that the others need.

    Args:
        state: tensors under ComfyUI's names.
        weights: the names and shapes that the model needs.

    Raises:
        IncompleteError: one is missing.
        InputError: one has another shape.
    """
    for name, shape in weights:
        value = state.get(name)
        if value is None:
            raise IncompleteError(
                "a tensor of the text encoder is missing",
                file=path,
                tensor=name,
                expected=f"{list(shape)}",
                found="in no file",
                fix="the file or folder is not whole: download it again",
            )
        # Core's own quantized formats pack the columns of some weights; their rows can still be compared.
        foreign = name.removesuffix("weight") + "comfy_quant" in state
        found = tuple(value.shape)
        if (found[:1] != shape[:1]) if foreign else (found != shape):
            raise InputError(
                "a tensor of the text encoder has a shape that does not fit the others",
                file=path,
                tensor=name,
                expected=f"{list(shape)}",
                found=f"{list(found)}",
                fix="the file is damaged or mixed of two models: download it again",
            )


def width(shapes: Mapping[str, tuple[int, ...]], name: str, rank: int | None = None) -> int:
    shape = shapes[name]
    if not shape or 0 in shape or rank not in (None, len(shape)):
        raise KeyError(f"{name} {list(shape)}")
    return shape[0]


def _count(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    """How many numbered layers lie under a prefix: all of them, or none is believed."""
    numbers = {name[len(prefix) :].partition(".")[0] for name in shapes if name.startswith(prefix)}
    for number in range(len(numbers)):
        if str(number) not in numbers:
            raise KeyError(f"{prefix}{number}")
    return len(numbers)


class SizedGemma(compat.Gemma3_12B):
    """ComfyUI's Gemma 3 in given widths. Without a vision tower in the file there is none here."""

    def __init__(self, config_dict: dict[str, Any], dtype: Any, device: Any, operations: Any):
        torch.nn.Module.__init__(self)
        config = config_dict["sizes"].config()
        self.num_layers = config.num_hidden_layers
        self.model = compat.Llama2_(config, device=device, dtype=dtype, ops=operations)
        self.dtype = dtype
        if config_dict["sizes"].vision is not None:
            self.multi_modal_projector = compat.Gemma3MultiModalProjector(config, dtype, device, operations)
            self.vision_model = compat.CLIPVision(config.vision_config, dtype, device, operations)
            self.image_size = config.vision_config["image_size"]

    def preprocess_embed(self, embed: dict[str, Any], device: Any) -> Any:
        """A picture in the prompt as embeddings; ignored, as core ignores it elsewhere, without a vision tower."""
        if not hasattr(self, "vision_model"):
            return None, None
        return super().preprocess_embed(embed, device)


class SizedGemmaModel(Unpadded, compat.Gemma3_12BModel):
    """ComfyUI's wrapper of the language model: token embeddings, masks, all hidden states."""

    def __init__(self, sizes: Sizes, device: Any, dtype: Any, model_options: dict[str, Any]):
        self.dtypes = {dtype}
        compat.SDClipModel.__init__(
            self,
            device=device,
            layer="all",
            textmodel_json_config={"sizes": sizes},
            dtype=dtype,
            special_tokens={"start": 2, "pad": 0},
            layer_norm_hidden_state=False,
            model_class=SizedGemma,
            enable_attention_masks=True,
            return_attention_masks=True,
            model_options=model_options,
        )


class SizedTextEncoder(compat.LTXAVTEModel):
    """ComfyUI's text encoder of LTX-2.3 and LTX-2: Gemma's hidden states, projected.

    Args:
        rows: widths of the projections, for the video and the audio stream; one, of LTX-2, is for both.
    """

    def __init__(
        self,
        sizes: Sizes,
        rows: Sequence[int],
        gemma_dtype: torch.dtype,
        projection_operations: Any,
        device: Any,
        model_options: dict[str, Any],
    ):
        def language(device: Any, dtype: Any, model_options: dict[str, Any], **_: Any) -> SizedGemmaModel:
            return SizedGemmaModel(sizes, device, dtype, model_options)

        kind = "dual_linear" if len(rows) == 2 else "single_linear"
        if compat.text_encoder_takes_sizes():
            super().__init__(
                dtype_llama=gemma_dtype,
                device=device,
                dtype=gemma_dtype,
                text_projection_type=kind,
                text_encoder_model=language,
                video_projection_dim=rows[0],
                audio_projection_dim=rows[-1],
                model_options=model_options,
            )
            if projection_operations is None:
                return
        else:
            torch.nn.Module.__init__(self)
            self.dtypes = {gemma_dtype}
            self.compat_mode = False
            self.text_projection_type = kind
            self.gemma3_12b = language(device, gemma_dtype, model_options)
        operations = projection_operations or self.gemma3_12b.operations
        columns = sizes.hidden * (sizes.layers + 1)
        if kind == "single_linear":
            self.text_embedding_projection = operations.Linear(
                columns, rows[0], bias=False, dtype=gemma_dtype, device=device
            )
            return
        self.text_embedding_projection = compat.DualLinearProjection(
            columns, *rows, dtype=gemma_dtype, device=device, operations=operations
        )

    def memory_estimation_function(self, token_weight_pairs: dict[str, Any], device: Any = None) -> float:
        """As in core; who only saves the model asks without tokens, and core's function fails."""
        if not token_weight_pairs.get("gemma3_12b"):
            return 0.0
        return super().memory_estimation_function(token_weight_pairs, device)
