"""What a model family is: how it is recognised, its tensors and config, what it needs, and the limits of what it makes.

A new family is a file here with one `Family`, and a line in `families`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..format.bounded import parse_object, read_object, whole_number

# Under which checkpoints hold a diffusion model; a file that holds nothing else may leave it out.
DIFFUSION = "model.diffusion_model."
TRANSFORMER = "transformer"

Shapes = Mapping[str, tuple[int, ...]]
Values = Mapping[str, Any]
# Tensor (or group), what the config expects, what was found.
Contradiction = tuple[str, str, str]


@dataclass(frozen=True)
class Part:
    """A piece of a model. Those but the transformer may be left to files of their own.

    Attributes:
        name: as users are told.
        prefixes: of its tensors' names.
        instead: what to use where a checkpoint does not hold it.
        marks: how names begin that only this make of it has; of another family's marks it has none.
    """

    name: str
    prefixes: tuple[str, ...]
    instead: str = ""
    marks: tuple[str, ...] = ()

    def holds(self, name: str) -> bool:
        """Whether a tensor of this name belongs to it."""
        return name.startswith(self.prefixes)


@dataclass(frozen=True)
class TextEncoder:
    """The language model that a family's prompts are encoded by.

    Attributes:
        name: as users are told.
        kind: `gemma3` or `gemma4`.
        files: where a user gets it.
    """

    name: str
    kind: str
    files: str


@dataclass(frozen=True)
class Limits:
    """What a family can make.

    Attributes:
        size: width and height are multiples of it, in pixels.
        frames: frames are `frames · n + 1`.
    """

    size: int = 1
    frames: int = 1


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        key: of recipes, workflows and data files: `ltx23`.
        name: as users are told: `LTX-2.3`.
        full: the published model's name, with its size.
        is_one: whether tensor names (with prefixes, maybe not all of them) are those of this family.
        needed: a config → the names of each part's tensors, by the part's name. A part that is not in it has tensors that
            are not known; ComfyUI checks them as it loads them.
        parts: the transformer first.
        check: a config and shapes → where they contradict each other. Absent tensors say nothing.
        tensors: the published model's tensors, name → (safetensors dtype, shape); empty where they are not known.
        form: a config whose values are of the kind that those of this family are.
        config: the published model's config; None where a checkpoint must bring its own.
        comfyui: the first version of ComfyUI that knows it.
        known: False for a version that was recognised as one of a line, and is none of those that are known: never loaded.
        recipe: which layers become HLWQ.
        limits: of what it makes.
        text_encoder: its language model.
        repositories: where it is published as HLWQ.
        published_bytes: about what such a checkpoint takes on the disk when it is whole, its upscalers included.
    """

    key: str
    name: str
    full: str
    is_one: Callable[[Collection[str]], bool]
    needed: Callable[[Values], dict[str, list[str]]]
    parts: tuple[Part, ...] = (Part(TRANSFORMER, (DIFFUSION,)),)
    check: Callable[[Values, Shapes], list[Contradiction]] = lambda config, shapes: []
    tensors: Callable[[], Mapping[str, tuple[str, tuple[int, ...]]]] = dict
    form: Callable[[], Values] = lambda: {TRANSFORMER: {}}
    config: Callable[[], dict[str, Any]] | None = None
    comfyui: str = ""
    known: bool = True
    recipe: str = "plain"
    limits: Limits = Limits()
    text_encoder: TextEncoder | None = None
    repositories: tuple[str, ...] = ()
    published_bytes: int = 0


# -- the config --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """A config as ComfyUI reads it, and where it came from (for reports and errors)."""

    values: dict[str, Any]
    source: str

    @property
    def json(self) -> str:
        """As safetensors metadata holds it."""
        return json.dumps(self.values)


def find_config(family: Family, folder: Path, metadata: Mapping[str, str], shapes: Shapes) -> Config:
    """The config of a checkpoint: of its metadata, of `config.json` in its folder, or the family's own.

    Without it ComfyUI infers depth, head size and context width; rope type, frequency precision, timestep scales, position
    limits and the VAE's layout would silently be another model's.

    Args:
        folder: the checkpoint's folder.
        metadata: the safetensors metadata of its files, merged.
        shapes: shapes of its tensors by name.

    Raises:
        ConfigError: there is none, or it does not fit the tensors.
    """
    path = folder / "config.json"
    fix = f"put the model's own config as {path}: the `config` that stands in the metadata of its original file"
    if "config" in metadata:
        config = Config(
            parse_object(metadata["config"], "the config", folder, ConfigError), "metadata of the checkpoint"
        )
    elif os.path.lexists(path) and "transformer" in (values := read_object(path, "config.json", ConfigError)):
        config = Config(values, str(path))
    elif family.config is not None:
        config = Config(family.config(), f"{family.name}, shipped with the pack")
    else:
        raise ConfigError(
            f"the checkpoint has no config, and {family.name} cannot be built without its own",
            file=folder,
            expected="`config` in the metadata of a file, or config.json beside them",
            found="neither",
            fix=fix,
        )
    check_form(config.values, family.form(), path if config.source == str(path) else folder)
    contradictions = family.check(config.values, shapes)
    if contradictions:
        what, expected, found = contradictions[0]
        raise ConfigError(
            "the model's config contradicts its tensors: the model would be built wrong",
            file=folder,
            tensor=what,
            expected=f"{expected}, by the config ({config.source})",
            found=found + (f"; and {len(contradictions) - 1} more contradictions" if len(contradictions) > 1 else ""),
            fix=fix,
        )
    return config


# Values that are counts: of layers nobody builds more, and of anything else none fits a memory.
_COUNTS = re.compile(r"(?:^|_)(?:layers|heads|dim|channels?|registers)$")
_MOST_LAYERS, _MOST = 1000, 1 << 24


def check_form(values: Values, like: Values, file: Path, where: str = "") -> None:
    """Refuse a config whose values are not of the kind that those of a known one are: sections, numbers, counts.

    Raises:
        ConfigError: names the first that is not.
    """
    for key, known in like.items():
        if key not in values:
            continue
        value, expected = values[key], None
        if isinstance(known, Mapping):
            if isinstance(value, Mapping):
                check_form(value, known, file, f"{where}{key}.")
            else:
                expected = "an object"
        elif isinstance(known, (int, float)) and not isinstance(known, bool):
            if _COUNTS.search(key):
                most = _MOST_LAYERS if key.endswith("layers") else _MOST
                absent = value is None and not key.endswith("layers")
                if not absent and whole_number(value, 0, most) is None:
                    expected = f"a whole number up to {most:,}"
            elif value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                expected = "a number"
        if expected:
            raise ConfigError(
                f"a value of the model's config is not what it must be: {where}{key}",
                file=file,
                expected=expected,
                found=json.dumps(value),
                fix="replace the config by the model's own",
            )


def has_any(names: Iterable[str], *marks: str) -> bool:
    """Whether some names hold one of the marks."""
    return any(mark in name for name in names for mark in marks)
