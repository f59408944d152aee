"""A Gemma 3 of 48 narrow layers with a vision tower and a sentencepiece model of its own."""

from __future__ import annotations

import io
from typing import Any

import sentencepiece
import torch

from .config import GEMMA
from .noise import normal

# Ids that ComfyUI fixes for Gemma 3: 0 pad, 1 end, 2 start, 3 unknown, 105 and 106 the ends of a turn.
RESERVED = [
    "<mask>",
    "[multimodal]",
    *[f"<unused{i}>" for i in range(99)],
    "<start_of_turn>",
    "<end_of_turn>",
]

TEXT = """a cat playing piano in a jazz club, warm light, slow camera
the sea at night under a full moon, waves breaking on dark rocks
a woman walks through a market in the rain and speaks to the camera
two dogs run over a snowy field, wide shot, soft morning light
a red car drives along the coast, engine sound, birds and wind
close up of hands that knead dough in a small bakery
an old robot paints a picture, the brush moves from left to right
people dance in the street while a band plays loud music
blurry, low quality, still frame, watermark, overlay, titles, subtitles
cinematic video of a forest with fog, a deer looks up, quiet footsteps""".splitlines()


def tokenizer() -> bytes:
    """A sentencepiece model with Gemma's special ids, byte fallback and a few words of English."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_writer=model,
        model_type="bpe",
        vocab_size=107 + 256 + 237,
        hard_vocab_limit=False,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        user_defined_symbols=RESERVED,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def shapes(vocabulary: int, sizes: dict[str, Any] = GEMMA) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the text encoder; `sizes` as in `config.GEMMA`."""
    hidden, inner, head = sizes["hidden_size"], sizes["intermediate_size"], sizes["head_dim"]
    queries, keys = sizes["num_attention_heads"] * head, sizes["num_key_value_heads"] * head
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(sizes["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        found |= {
            p + "self_attn.q_proj.weight": (queries, hidden),
            p + "self_attn.k_proj.weight": (keys, hidden),
            p + "self_attn.v_proj.weight": (keys, hidden),
            p + "self_attn.o_proj.weight": (hidden, queries),
            p + "self_attn.q_norm.weight": (head,),
            p + "self_attn.k_norm.weight": (head,),
            p + "mlp.gate_proj.weight": (inner, hidden),
            p + "mlp.up_proj.weight": (inner, hidden),
            p + "mlp.down_proj.weight": (hidden, inner),
            p + "input_layernorm.weight": (hidden,),
            p + "post_attention_layernorm.weight": (hidden,),
            p + "pre_feedforward_layernorm.weight": (hidden,),
            p + "post_feedforward_layernorm.weight": (hidden,),
        }
    return found | _vision_shapes(hidden, sizes["vision"])


def _vision_shapes(text_width: int, vision: dict[str, int]) -> dict[str, tuple[int, ...]]:
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    p = "vision_model."
    shapes: dict[str, tuple[int, ...]] = {
        "multi_modal_projector.mm_input_projection_weight": (width, text_width),
        "multi_modal_projector.mm_soft_emb_norm.weight": (width,),
        p + "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        p + "embeddings.patch_embedding.bias": (width,),
        p + "embeddings.position_embedding.weight": ((vision["image_size"] // patch) ** 2, width),
        p + "post_layernorm.weight": (width,),
        p + "post_layernorm.bias": (width,),
    }
    for layer in range(vision["num_hidden_layers"]):
        q = f"{p}encoder.layers.{layer}."
        linears = {f"self_attn.{x}_proj": (width, width) for x in ("q", "k", "v", "out")}
        linears |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
        for name, shape in linears.items():
            shapes |= {f"{q}{name}.weight": shape, f"{q}{name}.bias": shape[:1]}
        for name in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{q}{name}.weight": (width,), f"{q}{name}.bias": (width,)}
    return shapes


def weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """One tensor, float32."""
    if name.endswith("bias"):
        return normal(name, *shape, std=0.02)
    if name.startswith("vision_model.") and "norm" in name:
        return 1 + normal(name, *shape, std=0.05)
    if len(shape) == 1:
        # Gemma's norms multiply by 1 + w: small ones keep the tokens apart over 48 layers.
        quiet = "post_attention" in name or "post_feedforward" in name
        return normal(name, *shape, std=0.05) - (0.8 if quiet else 0.0)
    if "embed_tokens" in name:
        return normal(name, *shape, std=shape[1] ** -0.5)
    if "position_embedding" in name:
        return normal(name, *shape, std=0.1)
    fan_in = shape[0] if "projection_weight" in name else torch.Size(shape[1:]).numel()
    return normal(name, *shape, std=fan_in**-0.5)


def tensors() -> dict[str, torch.Tensor]:
    """The text encoder's file as ComfyUI expects it: bfloat16 weights and `spiece_model` as uint8."""
    model = tokenizer()
    vocabulary = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    weights = {name: weight(name, shape).bfloat16() for name, shape in shapes(vocabulary).items()}
    return weights | {"spiece_model": torch.frombuffer(bytearray(model), dtype=torch.uint8)}


def quantized_names(weights: dict[str, torch.Tensor]) -> list[str]:
    """The language model's linears: what an HLWQ writer quantizes of a text encoder."""
    return [name for name in weights if name.startswith("model.layers.") and weights[name].dim() == 2]
