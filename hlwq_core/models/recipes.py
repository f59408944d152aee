"""Which layers become HLWQ, and with how many bits: recipes as data (`data/rules/*.json` or a user's own file).

A recipe is a JSON object:

    {"name": "mine", "description": "…", "rules": [
        {"match": "*.adaln_single.*", "keep": true},
        {"match": "re:blocks\\\\.(0|47)\\\\..*\\\\.weight", "bits": 6},
        {"match": "*.weight", "bits": "default", "min_elements": 262144}
    ]}

Rules are tried in order and the first that matches decides; what none matches is kept as it is. `match` is a glob over the
whole tensor name, or a regular expression after `re:` (found anywhere in it). `bits` is a number, or `default` for what the
user asks for; instead of it `keep` leaves the tensor alone. `min_elements` and `min_in` (columns) are conditions. Only
floating matrices (2-D) are ever quantized.
"""

from __future__ import annotations

import fnmatch
import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..format.packed import encoded_bytes
from ..format.packing import BITS

_FOLDER = Path(__file__).parents[1] / "data" / "rules"
AUTO = "auto"  # the recipe of the model's own family
FLOATING = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_SIZES = FLOATING | {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class Rule:
    """One line of a recipe; `bits` is None when matching tensors are kept, 0 for the user's choice."""

    match: str
    bits: int | None
    min_elements: int = 0
    min_in: int = 0

    def applies(self, name: str, shape: tuple[int, ...]) -> bool:
        if math.prod(shape) < self.min_elements or shape[-1] < self.min_in:
            return False
        if self.match.startswith("re:"):
            return re.search(self.match[3:], name) is not None
        return fnmatch.fnmatchcase(name, self.match)


@dataclass(frozen=True)
class Recipe:
    """An ordered set of rules with a name and a description."""

    name: str
    description: str
    rules: tuple[Rule, ...]

    def bits_for(self, name: str, dtype: str, shape: tuple[int, ...], default: int = 5) -> int | None:
        """Bits for a tensor, or None when it stays as it is. `dtype` as safetensors names it."""
        if len(shape) != 2 or dtype not in FLOATING or 0 in shape:
            return None
        for rule in self.rules:
            if rule.applies(name, shape):
                return rule.bits if rule.bits != 0 else default
        return None

    def plan(self, tensors: Iterable[tuple[str, str, tuple[int, ...]]], default: int = 5) -> dict[str, int]:
        """Bits by name for all tensors (name, dtype, shape) that become HLWQ, in their order."""
        bits = {name: self.bits_for(name, dtype, tuple(shape), default) for name, dtype, shape in tensors}
        return {name: b for name, b in bits.items() if b is not None}


@dataclass(frozen=True)
class PlannedSize:
    """What a recipe makes of a model, bytes of tensor data (headers come to well under 0.1 %)."""

    codes: int
    norms: int
    kept: int
    layers: int
    weights: int

    @property
    def total(self) -> int:
        return self.codes + self.norms + self.kept


def planned_size(recipe: Recipe, tensors: Iterable[tuple[str, str, tuple[int, ...]]], default: int = 5) -> PlannedSize:
    """The size of a checkpoint before it is made, from names, dtypes and shapes alone."""
    codes = norms = kept = layers = weights = 0
    for name, dtype, shape in tensors:
        bits = recipe.bits_for(name, dtype, tuple(shape), default)
        if bits is None:
            kept += math.prod(shape) * _SIZES[dtype]
            continue
        packed, norm_bytes = encoded_bytes(tuple(shape), bits)
        codes, norms, layers, weights = codes + packed, norms + norm_bytes, layers + 1, weights + math.prod(shape)
    return PlannedSize(codes, norms, kept, layers, weights)


def recipe_names() -> list[str]:
    """The recipes that come with the pack."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def load_recipe(name_or_file: str | os.PathLike[str]) -> Recipe:
    """A recipe by its name, or from a user's JSON file.

    Raises:
        InputError: no such recipe, or a rule that cannot be understood.
    """
    text = os.fspath(name_or_file)
    path = _FOLDER / f"{text}.json" if text in recipe_names() else Path(text)
    if not path.is_file():
        raise InputError(
            "unknown recipe",
            expected=", ".join(recipe_names()) + ", or a JSON file",
            found=text,
            fix="name one of these, or give the path of a recipe file (see hlwq_core/data/rules for examples)",
        )
    try:
        data = json.loads(path.read_text("utf-8"))
        rules = tuple(_rule(path, item) for item in data["rules"])
        return Recipe(str(data.get("name", path.stem)), str(data.get("description", "")), rules)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            "the recipe cannot be understood",
            file=path,
            expected='a JSON object with "rules"',
            found=f"{type(error).__name__}: {error}",
            fix="compare it with hlwq_core/data/rules/plain.json",
        ) from error


def _rule(path: Path, item: dict[str, object]) -> Rule:
    known = {"match", "bits", "keep", "min_elements", "min_in", "comment"}
    match, bits = item["match"], item.get("bits")
    if set(item) - known:
        raise InputError(
            "a rule has unknown fields",
            file=path,
            expected=", ".join(sorted(known)),
            found=sorted(item),
            fix="correct the name, or take the field out",
        )
    if (bits is None) == (item.get("keep") is not True):
        raise InputError(
            "a rule needs either bits or keep",
            file=path,
            found=json.dumps(item),
            fix='give the rule one of them: "bits": 5, or "keep": true',
        )
    if bits is not None and bits != "default" and bits not in BITS:
        raise InputError("a rule's bits", file=path, expected=f"{BITS} or default", found=bits, fix="take one of these")
    if not isinstance(match, str):
        raise InputError(
            "a rule's match must be text",
            file=path,
            found=json.dumps(item),
            fix="put a regular expression in quotes there",
        )
    if match.startswith("re:"):
        try:
            re.compile(match[3:])
        except re.error as error:
            raise InputError(
                "a rule's regular expression",
                file=path,
                found=f"{match}: {error}",
                fix="correct it: it is read as in Python",
            ) from error
    number = {"default": 0}.get(bits, bits) if isinstance(bits, str) else bits
    return Rule(match, number, int(item.get("min_elements", 0)), int(item.get("min_in", 0)))  # type: ignore[arg-type, call-overload]
