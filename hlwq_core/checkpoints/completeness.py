"""What a whole checkpoint has: by the model's own list of tensors where the model is known, else by comparing its blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ..errors import ConfigError
from ..format.packed import encoded_bytes
from ..models import ltx_config, manifest
from ..models.recipes import load_recipe
from .checkpoint import Checkpoint


@dataclass
class Expected:
    """What must be there.

    Attributes:
        model: `LTX-2.3 22B`, `LTX-2.3 of another size`, or `unknown`.
        names: every tensor of the model; for an unknown one those that are there, and those that gaps in its blocks show.
        wrong_shapes: tensors whose shape is not the model's.
        bytes_quantized: what the published set of layers takes in 5 bits, where it is known.
        note: why the model is not known better.
    """

    model: str = "unknown"
    names: list[str] = field(default_factory=list)
    wrong_shapes: list[str] = field(default_factory=list)
    bytes_quantized: int | None = None
    note: str | None = None


def expectation(checkpoint: Checkpoint) -> Expected:
    """What a checkpoint, cut layers included, should hold."""
    known = manifest.expected()
    shapes = checkpoint.shapes()
    have = [*shapes, *checkpoint.cut]
    shared = [name for name in shapes if name in known]
    wrong = [name for name in shared if tuple(shapes[name]) != known[name][1]]
    if shared and len(wrong) * 5 < len(shared) and len(shared) * 2 > len(shapes):
        plan = load_recipe("ltx23").plan((name, dtype, shape) for name, (dtype, shape) in known.items())
        nbytes = sum(sum(encoded_bytes(known[name][1], bits)) for name, bits in plan.items())
        return Expected("LTX-2.3 22B", list(known), wrong, nbytes)
    by_blocks = list(dict.fromkeys([*have, *missing_in_blocks(have)]))
    if not ltx_config.is_ltx(shapes):
        return Expected(names=by_blocks)
    try:
        config = config_of(checkpoint)
    except ConfigError as error:
        note = f"{error.what}: how many blocks there must be is not known"
        return Expected("LTX-2.3 of another size", by_blocks, note=note)
    return Expected("LTX-2.3 of another size", ltx_config.needed_names(config.values, known))


def config_of(checkpoint: Checkpoint) -> ltx_config.Config:
    """The config of an LTX checkpoint: its own, or LTX-2.3's where that fits (see `ltx_config.find_config`).

    Raises:
        ConfigError: there is none, or it contradicts the tensors' shapes.
    """
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    return ltx_config.find_config(folder, checkpoint.metadata, checkpoint.shapes(), manifest.ltx23_config)


def component(name: str) -> str:
    """The part of a model that a tensor belongs to: everything before its first number, without the layer's own name.

    `model.diffusion_model.transformer_blocks.7.attn1.to_q.weight` → `model.diffusion_model.transformer_blocks`.
    """
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[:i]) or name
    return ".".join(parts[:2] if len(parts) > 2 else parts[:1])


def missing_in_blocks(names: list[str]) -> list[str]:
    """Names that other blocks of the same stack have and one lacks, and blocks that a gap in the numbers leaves out."""
    stacks: dict[str, dict[int, set[str]]] = {}
    for name in names:
        found = re.match(r"^(.*?\.?\w*(?:blocks|layers))\.(\d+)\.(.+)$", name)
        if found:
            stacks.setdefault(found[1], {}).setdefault(int(found[2]), set()).add(found[3])
    missing: list[str] = []
    for stack, blocks in stacks.items():
        kinds: dict[str, int] = {}
        for tails in blocks.values():
            for tail in tails:
                kinds[tail] = kinds.get(tail, 0) + 1
        # Stacks of unlike blocks (a VAE's) have few tensors in common: only what most blocks have is missed.
        usual = [tail for tail, count in kinds.items() if count * 2 > len(blocks)]
        if len(usual) * 2 < len(kinds):
            continue
        for number in range(max(blocks) + 1):
            missing += [f"{stack}.{number}.{tail}" for tail in usual if tail not in blocks.get(number, set())]
    return missing
