"""LTX-2 (19B): attention without gates, prompts projected by the transformer, one text projection for both streams."""

from __future__ import annotations

from collections.abc import Collection

from . import ltx, ltx23
from .family import TRANSFORMER, Family, Values, has_any

# The text projection that both streams share.
SHARED = f"{ltx.PROJECTION_PREFIX}aggregate_embed."
_MARKS = (*ltx.CAPTIONS, SHARED)


def is_one(names: Collection[str]) -> bool:
    """By the captions' projection in the transformer, or the text projection that both streams share."""
    return ltx.is_ltx(names) and has_any(names, *_MARKS)


def needed(config: Values) -> dict[str, list[str]]:
    """The tensors of the transformer and of the projection."""
    return {
        TRANSFORMER: ltx.transformer(config.get("transformer", {})),
        ltx.PROJECTION: [f"{SHARED}weight"],
    }


FAMILY = Family(
    key="ltx2",
    name="LTX-2",
    full="LTX-2 19B",
    is_one=is_one,
    needed=needed,
    parts=ltx.parts((ltx.CONVOLUTIONS,), ("vocoder.resblocks.",), (SHARED,)),
    form=ltx.form,
    check=ltx.check,
    comfyui="0.30.0",
    recipe="ltx2",
    limits=ltx.LIMITS,
    text_encoder=ltx23.ENCODER,
)
