"""LTX-2.5 (22B, August 2026): LTX-2.3's transformer without biases in the video's feed-forwards, and keyframes have a place.

Its files hold one component each: transformer, text encoder (Gemma 4 with the projection), video VAE, audio VAE.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection
from typing import Any

from . import ltx, ltx23
from .family import DIFFUSION, TRANSFORMER, Contradiction, Family, Shapes, TextEncoder, Values, has_any

_KEYFRAMES = f"{DIFFUSION}keyframes_abs_pos_embedding"
_FEED_FORWARD = re.compile(rf"^{re.escape(DIFFUSION)}transformer_blocks\.\d+\.ff\.net\.(2|0\.proj)\.(weight|bias)$")


def is_one(names: Collection[str]) -> bool:
    """By the keyframes' embedding, or by gates and feed-forwards without a bias."""
    if not ltx.is_ltx(names):
        return False
    if _KEYFRAMES in names:
        return True
    ends = {match[2] for match in map(_FEED_FORWARD.match, names) if match}
    return ends == {"weight"} and has_any(names, ".to_gate_logits.bias")


def _values(config: Values) -> dict[str, Any]:
    return {**config.get("transformer", {}), "use_keyframes_abs_pos_embedding": True}


def needed(config: Values) -> dict[str, list[str]]:
    """The tensors of the transformer and of the projection."""
    projection = [
        f"{ltx.PROJECTION_PREFIX}{stream}_aggregate_embed.{kind}"
        for stream in ("video", "audio")
        for kind in ("weight", "bias")
    ]
    return {TRANSFORMER: ltx.transformer(_values(config)), ltx.PROJECTION: projection}


@functools.lru_cache(maxsize=1)
def tensors() -> dict[str, tuple[str, tuple[int, ...]]]:
    """The transformer of LTX-2.5 22B: LTX-2.3's tensors and shapes, as far as it has them."""
    older = ltx23.tensors()
    names = needed({"transformer": {**ltx23.config()["transformer"], "ff_bias": False}})[TRANSFORMER]
    return {name: older.get(name, ("BF16", (1, 4096))) for name in names}


def check(config: Values, shapes: Shapes) -> list[Contradiction]:
    """As of every LTX; and a config that asks for biases in the feed-forwards is another version's."""
    block = f"{DIFFUSION}transformer_blocks.0.ff.net.2"
    biased = config.get("transformer", {}).get("ff_bias", True)
    if biased and f"{block}.weight" in shapes and f"{block}.bias" not in shapes:
        return [(f"{block}.bias", "ff_bias = true", "feed-forwards without a bias"), *ltx.check(config, shapes)]
    return ltx.check(config, shapes)


ENCODER = TextEncoder("Gemma 4 12B", "gemma4", "gemma4-12b-with-proj-ltx-2.5-*.safetensors (models/text_encoders/)")
FAMILY = Family(
    key="ltx25",
    name="LTX-2.5",
    full="LTX-2.5 22B",
    is_one=is_one,
    needed=needed,
    parts=ltx.parts((ltx.CONVOLUTIONS, ltx.DIFFUSES), (), (f"{ltx.PROJECTION_PREFIX}video_aggregate_embed.",)),
    form=ltx.form,
    check=check,
    tensors=tensors,
    comfyui="0.32.0",
    recipe="ltx25",
    limits=ltx.LIMITS,
    text_encoder=ENCODER,
)
