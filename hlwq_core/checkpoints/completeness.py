"""Whether a checkpoint is whole: the one answer, for whoever loads, shows, checks or completes it.

Where the family is known, by its tensors; else by comparing the blocks with each other. A model's transformer must be whole,
and so must each other part that the checkpoint holds any of. Parts that a whole transformer comes without are left to files
of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ConfigError, HLWQError, IncompleteError, UnsupportedError
from ..format.packed import encoded_bytes
from ..models import families
from ..models.families import Found
from ..models.family import TRANSFORMER, Config, Family, Part, Shapes, find_config
from ..models.recipes import load_recipe
from .checkpoint import Checkpoint

# Stack, number and the rest of a block's tensor. No model comes near five digits.
STACK = re.compile(r"^(.*?(?:blocks|layers))\.([0-9]{1,4})\.(.+)$")
REPAIR = "HLWQ Verify lists all of them; HLWQ Repair takes them out of another file, HLWQ Download fetches them"


@dataclass
class Whole:
    """What there must be, and what of it there is.

    Attributes:
        model: `LTX-2.3 22B`, `LTX-2.3 of another size`, `LTX-2` where the published sizes are not known, or `unknown`.
        other_size: of a known family, not of its published size.
        found: the family, None where it is not known.
        config: of a known family, None if there is none that fits: then `error` says why.
        names: every tensor that the parts that are there need; for an unknown model those that are there, and those that
            gaps in its blocks show.
        missing: those of them that are in none of the files.
        unexpected: tensors that the model has no place for.
        wrong_shapes: tensors whose shape is not the model's.
        absent: parts that the checkpoint holds nothing of.
        bytes_quantized: what the published set of layers takes in 5 bits, where it is known.
        error: why it cannot be loaded, whatever else is there.
    """

    model: str = "unknown"
    other_size: bool = False
    found: Found | None = None
    config: Config | None = None
    names: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong_shapes: list[str] = field(default_factory=list)
    absent: list[Part] = field(default_factory=list)
    bytes_quantized: int | None = None
    error: HLWQError | None = None

    @property
    def family(self) -> Family | None:
        """The model's family; None where it is not known."""
        return self.found.family if self.found else None

    @property
    def complete(self) -> bool:
        """Whether it can be loaded."""
        return not (self.missing or self.unexpected or self.wrong_shapes or self.error)

    def lacks(self, part: str) -> Part | None:
        """The part of this name, if the checkpoint holds nothing of it."""
        return next((other for other in self.absent if other.name == part), None)


def whole(checkpoint: Checkpoint) -> Whole:
    """What a checkpoint should hold, and whether it does. Layers that are cut are missing."""
    there = [*checkpoint.names(), *checkpoint.plain_names()]
    marks = dict.fromkeys([*there, *checkpoint.cut])
    found = families.recognise(marks)
    result = Whole(found=found)
    if found is None:
        result.names = list(dict.fromkeys([*marks, *missing_in_blocks(list(marks))]))
    else:
        _by_family(checkpoint, found, there, list(marks), result)
    have = set(there)
    result.missing = [name for name in result.names if name not in have]
    return result


def _by_family(checkpoint: Checkpoint, found: Found, have: list[str], marks: list[str], result: Whole) -> None:
    family = found.family
    shapes = {found.canonical(name): shape for name, shape in checkpoint.shapes().items()}
    marks = [found.canonical(name) for name in marks]
    if not family.known:
        result.model = family.full
        result.names = [found.own(name) for name in marks]
        result.error = _unknown_version(checkpoint, family)
        return
    result.error = _of_another_version(checkpoint, family, marks)
    full = _is_full(family, shapes)
    result.other_size = not full and bool(family.tensors())
    result.model = f"{family.name} of another size" if result.other_size else family.full if full else family.name
    needed = None
    try:
        result.config = _config(checkpoint, family, shapes)
        needed = family.needed(result.config.values)
    except ConfigError as error:
        result.error = result.error or error
        if full and family.config is not None:
            needed = family.needed(family.config())
    if needed is None:
        result.names = [found.own(name) for name in dict.fromkeys([*marks, *missing_in_blocks(marks)])]
        return
    absent = [part for part in family.parts[1:] if not any(map(part.holds, marks))]
    lost = not set(needed[TRANSFORMER]) <= {found.canonical(name) for name in have}
    if lost and (len(absent) < len(family.parts) - 1 or not checkpoint.plain_names()):
        # What took a part of the transformer along took more than that: nothing was left out on purpose.
        absent = [part for part in absent if not needed.get(part.name)]
    result.absent = absent
    names: list[str] = []
    for part in family.parts:
        if part not in result.absent:
            # Of a part whose tensors are not known, what is there.
            names += needed.get(part.name, [name for name in marks if part.holds(name)])
    known = set(names)
    result.names = [found.own(name) for name in names]
    result.unexpected = [found.own(name) for name in marks if name not in known]
    if full:
        expected = family.tensors()
        wrong = [name for name, shape in shapes.items() if name in expected and tuple(shape) != expected[name][1]]
        result.wrong_shapes = [found.own(name) for name in wrong]
        result.bytes_quantized = _published_bytes(family)


def _config(checkpoint: Checkpoint, family: Family, shapes: Shapes) -> Config:
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    return find_config(family, folder, checkpoint.metadata, shapes)


def _is_full(family: Family, shapes: Shapes) -> bool:
    """Whether most tensors have the shapes of the published model."""
    known = family.tensors()
    shared = [name for name in shapes if name in known]
    wrong = sum(tuple(shapes[name]) != known[name][1] for name in shared)
    return bool(shared) and wrong * 5 < len(shared) and len(shared) * 2 > len(shapes)


def _published_bytes(family: Family) -> int:
    known = family.tensors()
    plan = load_recipe(family.recipe).plan((name, dtype, shape) for name, (dtype, shape) in known.items())
    return sum(sum(encoded_bytes(known[name][1], bits)) for name, bits in plan.items())


def _of_another_version(checkpoint: Checkpoint, family: Family, names: list[str]) -> HLWQError | None:
    """The error if a part is of another version's make than the transformer."""
    for part in family.parts:
        marks = {
            other.name: tuple(mark for its in other.parts if its.name == part.name for mark in its.marks)
            for other in families.FAMILIES
            if part.marks and other is not family
        }
        every = tuple(mark for its in marks.values() for mark in its)
        strange = [name for name in names if name.startswith(every) and not name.startswith(part.marks)]
        if strange:
            whose = " or ".join(other for other, its in marks.items() if strange[0].startswith(its))
            return UnsupportedError(
                f"the {part.name} is that of {whose}, and the transformer is {family.name}: two versions share this "
                "checkpoint; nothing was loaded",
                file=checkpoint.path,
                tensor=some(strange),
                expected=f"the {part.name} of {family.name}, or none",
                found=f"that of {whose}",
                fix=f"take these files out of the folder and use {part.instead} of {family.name}",
            )
    return None


def _unknown_version(checkpoint: Checkpoint, family: Family) -> HLWQError:
    known = [other.name for other in families.FAMILIES if other.known]
    return UnsupportedError(
        f"this is {family.name}: it has the marks of none that this pack knows",
        file=checkpoint.path,
        expected=f"a model of {', '.join(known[:-1])} or {known[-1]}",
        found=f"{len(checkpoint.names())} quantized and {len(checkpoint.plain_names())} plain tensors",
        fix="update the pack; if it is a known version, its files are not all there: download it again",
    )


# -- refusing ----------------------------------------------------------------------------------------------------------


def refuse_incomplete(path: Path, result: Whole) -> None:
    """Name what is missing, has no place or another shape.

    Raises:
        IncompleteError, UnsupportedError, ConfigError: the checkpoint cannot be loaded.
    """
    there = len(result.names) - len(result.missing)
    if result.error is not None:
        raise result.error
    strangers = _strangers(result) if result.unexpected else None
    if strangers:  # no repair makes one model of two
        _refuse_unexpected(path, result.model, result.unexpected, len(result.names), there, strangers)
    if result.missing:
        _refuse_missing(path, "the checkpoint", result.missing, len(result.names), there)
    if result.unexpected:
        _refuse_unexpected(path, result.model, result.unexpected, len(result.names), there)
    if result.wrong_shapes:
        raise UnsupportedError(
            f"{len(result.wrong_shapes)} tensors have other shapes than {result.model} gives them; nothing was loaded",
            file=path,
            tensor=some(result.wrong_shapes),
            expected=f"the shapes of {result.model}",
            found="others",
            fix="the files belong to another model or version: download the checkpoint again",
        )


def refuse_differences(path: Path, part: str, needed: Iterable[str], given: Iterable[str]) -> None:
    """Name what a model needs and does not get, or gets and does not know.

    Raises:
        IncompleteError: something is missing.
        UnsupportedError: something is there that the model has no place for.
    """
    needed, given = list(needed), list(given)
    known, there = set(needed), set(given)
    missing = [name for name in needed if name not in there]
    if missing:
        _refuse_missing(path, part, missing, len(needed), len(needed) - len(missing))
    unexpected = [name for name in given if name not in known]
    if unexpected:
        _refuse_unexpected(path, part, unexpected, len(needed), len(given))


def _refuse_missing(path: Path, part: str, missing: list[str], needed: int, there: int) -> None:
    raise IncompleteError(
        f"{len(missing)} of {needed} tensors of {part} are in none of the files; nothing was loaded",
        file=path,
        tensor=some(missing),
        expected=f"{needed} tensors",
        found=f"{there}",
        fix=REPAIR,
    )


def _refuse_unexpected(
    path: Path, part: str, unexpected: list[str], needed: int, there: int, strangers: Family | None = None
) -> None:
    other = f" (they are those of {strangers.name}: two versions share this folder)" if strangers else ""
    raise UnsupportedError(
        f"{len(unexpected)} tensors in the files have no place in {part}{other}; nothing was loaded",
        file=path,
        tensor=some(unexpected),
        expected=f"the {needed} tensors of the model",
        found=f"{there + len(unexpected) if strangers else there}",
        fix="the files belong to another model or version, or two checkpoints share a folder: separate them",
    )


def _strangers(result: Whole) -> Family | None:
    """The family that knows what the checkpoint's own has no place for."""
    if result.found is None or result.config is None:
        return None
    strange = {result.found.canonical(name) for name in result.unexpected}
    for family in families.FAMILIES:
        if family is not result.family and family.known:
            values = result.config.values
            configs = [family.config() if family.config else values]
            if not family.tensors():  # LTX-2: its names are those of a config that says nothing but the depth
                depth = values.get("transformer", {}).get("num_layers", 48)
                configs = [{"transformer": {"num_layers": depth}}]
            names = {name for config in configs for part in family.needed(config).values() for name in part}
            if strange <= names:
                return family
    return None


def some(names: list[str], count: int = 5) -> str:
    """The first of some names, and how many more there are."""
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


# -- without a family --------------------------------------------------------------------------------------------------


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
        found = STACK.match(name)
        if found:
            stacks.setdefault(found[1], {}).setdefault(int(found[2]), set()).add(found[3])
    missing: list[str] = []
    for stack, blocks in stacks.items():
        kinds: dict[str, int] = {}
        for tails in blocks.values():
            for tail in tails:
                kinds[tail] = kinds.get(tail, 0) + 1
        # Stacks of unlike blocks (a VAE's) have few tensors in common: only what most blocks have is missed.
        if max(blocks) >= 4 * len(blocks) + 64:
            continue  # no gaps, but numbers of another meaning; nothing is counted up to them
        usual = [tail for tail, count in kinds.items() if count * 2 > len(blocks)]
        if len(usual) * 2 < len(kinds):
            continue
        by_design = {tail for tail in usual if _regular([n for n, tails in blocks.items() if tail not in tails])}
        for number in range(max(blocks) + 1):
            wanted = [tail for tail in usual if tail not in by_design or number not in blocks]
            missing += [f"{stack}.{number}.{tail}" for tail in wanted if tail not in blocks.get(number, set())]
    return missing


def _regular(numbers: list[int]) -> bool:
    """Whether blocks lie at equal distances, and not side by side: as those of another make do (every sixth of Gemma 4's
    layers has no `v_proj`), and files that are lost do not."""
    numbers = sorted(numbers)
    steps = {b - a for a, b in zip(numbers, numbers[1:])}
    return len(numbers) >= 3 and len(steps) == 1 and steps != {1}
