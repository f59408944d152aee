"""The config that LTX checkpoints need and published HLWQ folders lack: found, chosen, and checked against the tensors.

Without it ComfyUI infers depth, head size and context width; rope type, frequency precision, timestep scales, position
limits and the VAE's layout would silently be another model's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..format.codebook import BLOCK

DIFFUSION = "model.diffusion_model."
Shapes = Mapping[str, tuple[int, ...]]
_BLOCK = re.compile(
    r"^model\.diffusion_model\.(?:(?P<connector>\w+_embeddings_connector)\.transformer_1d_blocks|transformer_blocks)"
    r"\.(?P<index>\d+)\."
)


@dataclass(frozen=True)
class Config:
    """A config as ComfyUI reads it, and where it came from (for reports and errors)."""

    values: dict[str, Any]
    source: str

    @property
    def json(self) -> str:
        """As safetensors metadata holds it."""
        return json.dumps(self.values)


def is_ltx(names: Iterable[str]) -> bool:
    """Whether tensor names are those of an LTX model with sound (LTX-2 and later), also if some are missing."""
    return any(
        name.startswith((f"{DIFFUSION}audio_adaln_single.", f"{DIFFUSION}audio_patchify_proj."))
        or (name.startswith(f"{DIFFUSION}transformer_blocks.") and ".audio_attn1." in name)
        for name in names
    )


def is_ltx_23(names: Iterable[str]) -> bool:
    """Whether they are those of LTX-2.3: its text projection, prompt modulation, and vocoder tell it from LTX-2."""
    marks = ("text_embedding_projection.", f"{DIFFUSION}prompt_adaln_single.", "vocoder.bwe_generator.")
    return any(name.startswith(marks) for name in names)


def find_config(
    folder: Path, metadata: Mapping[str, str], shapes: Shapes, shipped: Callable[[], dict[str, Any]]
) -> Config:
    """The config of a checkpoint: of its metadata, of `config.json` in its folder, or the shipped one of LTX-2.3.

    Args:
        folder: the checkpoint's folder.
        metadata: the safetensors metadata of its files, merged.
        shapes: shapes of its tensors by name.
        shipped: gives LTX-2.3's config.

    Raises:
        ConfigError: none fits the tensors.
    """
    path = folder / "config.json"
    if "config" in metadata:
        config = Config(_parse(metadata["config"], folder), "metadata of the checkpoint")
    elif path.is_file() and "transformer" in (values := _parse(path.read_text(encoding="utf-8"), path)):
        config = Config(values, str(path))
    else:
        config = Config(shipped(), "LTX-2.3, shipped with the pack")
    contradictions = check(config.values, shapes)
    if contradictions:
        what, expected, found = contradictions[0]
        raise ConfigError(
            "the model's config contradicts its tensors: the model would be built wrong",
            file=folder,
            tensor=what,
            expected=f"{expected}, by the config ({config.source})",
            found=found + (f"; and {len(contradictions) - 1} more contradictions" if len(contradictions) > 1 else ""),
            fix=f"put the model's own config as {path}: the `config` that stands in the metadata of its original file",
        )
    return config


def _parse(text: str, file: Path) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError(
            "the config is no JSON",
            file=file,
            expected="a JSON object",
            found=error,
            fix="replace it by the model's own",
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(
            "the config is no JSON object",
            file=file,
            expected="an object with the key transformer",
            found=type(values).__name__,
            fix="replace it by the model's own",
        )
    return values


def check(config: Mapping[str, Any], shapes: Shapes) -> list[tuple[str, str, str]]:
    """What a config says and the tensors contradict: tensor (or group), expected, found. Absent tensors say nothing."""
    transformer = config.get("transformer", {})
    found: list[tuple[str, str, str]] = []

    def compare(name: str, axis: int, meaning: str, value: int | None) -> None:
        if value is None or name not in shapes:
            return
        # A packed weight's file does not always tell how wide a padded row is.
        if shapes[name][axis] not in (value, -(-value // BLOCK) * BLOCK if axis == 1 else value):
            found.append((name, f"{meaning} = {value}", f"{shapes[name][axis]} in shape {list(shapes[name])}"))

    def product(a: str, b: str) -> int | None:
        return transformer[a] * transformer[b] if a in transformer and b in transformer else None

    blocks = 1 + max(
        (int(m["index"]) for m in map(_BLOCK.match, shapes) if m and m["connector"] is None),
        default=transformer.get("num_layers", 0) - 1,
    )
    if blocks > transformer.get("num_layers", blocks):
        found.append(
            (f"{DIFFUSION}transformer_blocks", f"num_layers = {transformer['num_layers']}", f"{blocks} blocks")
        )
    video, audio = (
        product("num_attention_heads", "attention_head_dim"),
        product("audio_num_attention_heads", "audio_attention_head_dim"),
    )
    compare(f"{DIFFUSION}patchify_proj.weight", 0, "num_attention_heads · attention_head_dim", video)
    compare(f"{DIFFUSION}patchify_proj.weight", 1, "in_channels", transformer.get("in_channels"))
    compare(f"{DIFFUSION}proj_out.weight", 0, "out_channels", transformer.get("out_channels"))
    compare(f"{DIFFUSION}audio_patchify_proj.weight", 0, "audio_num_attention_heads · audio_attention_head_dim", audio)
    compare(f"{DIFFUSION}audio_proj_out.weight", 0, "audio_out_channels", transformer.get("audio_out_channels"))
    block = f"{DIFFUSION}transformer_blocks.0"
    compare(f"{block}.attn2.to_k.weight", 1, "cross_attention_dim", transformer.get("cross_attention_dim"))
    compare(
        f"{block}.audio_attn2.to_k.weight", 1, "audio_cross_attention_dim", transformer.get("audio_cross_attention_dim")
    )
    compare("vae.decoder.conv_in.conv.weight", 1, "latent_channels", config.get("vae", {}).get("latent_channels"))
    compare(
        "vae.encoder.conv_in.conv.weight",
        0,
        "encoder_base_channels",
        config.get("vae", {}).get("encoder_base_channels"),
    )
    for part, prefix in (("vocoder", "vocoder.vocoder"), ("bwe", "vocoder.bwe_generator")):
        values = config.get("vocoder", {}).get(part, {})
        compare(
            f"{prefix}.conv_pre.weight", 0, f"{part}.upsample_initial_channel", values.get("upsample_initial_channel")
        )
    return found


def needed_names(config: Mapping[str, Any], manifest: Iterable[str]) -> list[str]:
    """The names that an LTX-2.3 of this config has: the full model's, less the blocks beyond its depth."""
    transformer = config.get("transformer", {})
    depth, connectors = transformer.get("num_layers", 48), transformer.get("connector_num_layers", 8)
    kept = []
    for name in manifest:
        match = _BLOCK.match(name)
        if match is None or int(match["index"]) < (depth if match["connector"] is None else connectors):
            kept.append(name)
    return kept
