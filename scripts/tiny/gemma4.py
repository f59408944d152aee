"""A Gemma 4 of 48 narrow layers with its patch embedders, a tokenizer of its own, and LTX-2.5's projection in one file."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from . import transformer
from .config import AUDIO_WIDTH, GEMMA_WIDTH, VIDEO_WIDTH
from .gemma import TEXT
from .noise import normal

# Ids that ComfyUI fixes for Gemma 4: 0 pad, 1 end, 2 start; 3 is unknown.
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]
VOCABULARY = 600
LAYERS = 48


def tokenizer() -> bytes:
    """A tokenizer.json of bytes and a few words of English."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXT, trainer)
    return made.to_str().encode()


def tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """The text encoder's file as ComfyUI expects it: bfloat16 weights, the projection, `tokenizer_json` as uint8.

    Args:
        shapes: of ComfyUI's narrow Gemma 4, by name.
    """
    projection = {}
    for stream, rows in (("video", VIDEO_WIDTH), ("audio", AUDIO_WIDTH)):
        name = f"text_embedding_projection.{stream}_aggregate_embed"
        projection |= {f"{name}.weight": (rows, GEMMA_WIDTH * (LAYERS + 1)), f"{name}.bias": (rows,)}
    weights = {name: _weight(name, shape).bfloat16() for name, shape in shapes.items()}
    weights |= {name: transformer.weight(name, shape).bfloat16() for name, shape in projection.items()}
    return weights | {"tokenizer_json": torch.frombuffer(bytearray(tokenizer()), dtype=torch.uint8)}


def _weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    if name.endswith("layer_scalar"):
        return torch.ones(shape)
    if name.endswith("bias"):
        return normal(name, *shape, std=0.02)
    if len(shape) == 1:
        # Quiet branches keep the tokens apart over 48 layers.
        quiet = "post_attention" in name or "post_feedforward" in name
        return normal(name, *shape, std=0.05) + (0.2 if quiet else 1.0)
    if "pos_embedding" in name:
        return normal(name, *shape, std=0.1)
    return normal(name, *shape, std=shape[-1] ** -0.5)
