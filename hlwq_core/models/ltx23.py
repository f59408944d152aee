"""LTX-2.3 (22B): 5,947 tensors, 46.15 GB in one file; attention with gates, prompts modulate the cross-attention."""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Collection
from typing import Any

from . import ltx
from .family import DIFFUSION, TRANSFORMER, Family, TextEncoder, Values, has_any

# The same checkpoint under its first and its present name.
REPOSITORIES = ("caiovicentino1/LTX-2.3-22B-HLWQ-Q5", "caiovicentino1/LTX-2.3-22B-PolarQuant-Q5")

_MARKS = (
    ".prompt_adaln_single.",
    "prompt_scale_shift_table",
    ".to_gate_logits.",
    "text_embedding_projection.video_aggregate_embed.",
    "vocoder.bwe_generator.",
)


def is_one(names: Collection[str]) -> bool:
    """Gates, modulation by the prompt, its own text projection and vocoder tell it from LTX-2.

    Codes alone have no mark of any version: as such, LTX-2.3 is published.
    """
    if not ltx.is_ltx(names):
        return False
    transformer = [name for name in names if name.startswith(DIFFUSION)]
    if has_any(transformer, *_MARKS):
        return True
    # Whose VAE it is does not say whose transformer.
    return not has_any(transformer, *ltx.CAPTIONS) and (has_any(names, *_MARKS) or not has_any(names, ".bias"))


def needed(config: Values) -> dict[str, list[str]]:
    """The tensors of each part. Only the transformer's depth differs from the published model's; the rest are all there."""
    names = {part.name: [name for name in tensors() if part.holds(name)] for part in ltx.PARTS}
    return names | {TRANSFORMER: ltx.transformer(config.get("transformer", {}))}


@functools.lru_cache(maxsize=1)
def tensors() -> dict[str, tuple[str, tuple[int, ...]]]:
    """The 5,947 tensors of LTX-2.3 22B: name → (safetensors dtype, shape)."""
    found = {}
    with gzip.open(ltx.DATA / "ltx23_manifest.tsv.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            name, dtype, shape = line.rstrip("\n").split("\t")
            found[name] = (dtype, tuple(int(n) for n in shape.split(",") if n))
    return found


@functools.lru_cache(maxsize=1)
def _config_text() -> str:
    return (ltx.DATA / "ltx23_config.json").read_text(encoding="utf-8")


def config() -> dict[str, Any]:
    """The `config` of LTX-2.3 22B, which the published files lack; a fresh copy."""
    values: dict[str, Any] = json.loads(_config_text())
    return values


ENCODER = TextEncoder("Gemma 3 12B", "gemma3", "gemma_3_12B_it*.safetensors of Comfy-Org/ltx-2 (models/text_encoders/)")
FAMILY = Family(
    key="ltx23",
    name="LTX-2.3",
    full="LTX-2.3 22B",
    is_one=is_one,
    needed=needed,
    parts=ltx.parts(
        (ltx.CONVOLUTIONS,),
        ("vocoder.bwe_generator.", "vocoder.vocoder."),
        (f"{ltx.PROJECTION_PREFIX}video_aggregate_embed.",),
    ),
    form=ltx.form,
    check=ltx.check,
    tensors=tensors,
    config=config,
    comfyui="0.30.0",
    recipe="ltx23",
    limits=ltx.LIMITS,
    text_encoder=ENCODER,
    repositories=REPOSITORIES,
    published_bytes=22_300_000_000,
)
