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
import subprocess
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError
from ..format.bounded import is_file, read_object, whole_number
from ..format.sizes import BITS

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
    trusted: bool = False
    found: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)

    def applies(self, name: str, shape: tuple[int, ...]) -> bool:
        if math.prod(shape) < self.min_elements or shape[-1] < self.min_in:
            return False
        if not self.match.startswith("re:"):
            return fnmatch.fnmatchcase(name, self.match)
        self.prepare((name,))
        return self.found[name]

    def prepare(self, names: Collection[str]) -> None:
        """Look for a regular expression in many names at once; a user's own is tried where it can be stopped."""
        new = [name for name in names if name not in self.found]
        if not self.match.startswith("re:") or not new:
            return
        pattern = self.match[3:]
        if self.trusted:
            found = [re.search(pattern, name) is not None for name in new]
        else:
            found = _search_elsewhere(pattern, new)
        self.found.update(zip(new, found))


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

    def prepare(self, names: Collection[str]) -> None:
        """Before many questions: try the regular expressions of all rules on all names.

        Raises:
            InputError: one of them takes too long.
        """
        for rule in self.rules:
            rule.prepare(names)

    def plan(self, tensors: Iterable[tuple[str, str, tuple[int, ...]]], default: int = 5) -> dict[str, int]:
        """Bits by name for all tensors (name, dtype, shape) that become HLWQ, in their order."""
        tensors = list(tensors)
        self.prepare([name for name, _, shape in tensors if len(shape) == 2])
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
    from ..format.packed import encoded_bytes  # not above: it brings torch, and describing the recipes needs none

    tensors = list(tensors)
    recipe.prepare([name for name, _, shape in tensors if len(shape) == 2])
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
    shipped = text in recipe_names()
    path = _FOLDER / f"{text}.json" if shipped else Path(text)
    if not is_file(path):
        raise InputError(
            "unknown recipe",
            expected=", ".join(recipe_names()) + ", or a JSON file",
            found=text,
            fix="name one of these, or give the path of a recipe file (see hlwq_core/data/rules for examples)",
        )
    data = read_object(path, "the recipe", InputError)
    rules = data.get("rules")
    if not isinstance(rules, list) or len(rules) > _MOST_RULES:
        raise _not_understood(path, 'a JSON object with "rules", a list', rules)
    return Recipe(
        str(data.get("name", path.stem)),
        str(data.get("description", "")),
        tuple(_rule(path, item, shipped) for item in rules),
    )


_MOST_RULES = 1000
_LONGEST_MATCH = 1000


def _not_understood(path: Path, expected: str, found: object) -> InputError:
    return InputError(
        "the recipe cannot be understood",
        file=path,
        expected=expected,
        found=found,
        fix="compare it with hlwq_core/data/rules/plain.json",
    )


def _rule(path: Path, item: object, shipped: bool) -> Rule:
    known = {"match", "bits", "keep", "min_elements", "min_in", "comment"}
    if not isinstance(item, dict):
        raise _not_understood(path, "rules that are JSON objects", item)
    match, bits = item.get("match"), item.get("bits")
    if set(item) - known:
        raise _not_understood(path, f"rules with no other fields than {', '.join(sorted(known))}", sorted(item))
    if (bits is None) == (item.get("keep") is not True):
        raise _not_understood(path, "rules with either bits or keep", json.dumps(item))
    if not isinstance(match, str) or len(match) > _LONGEST_MATCH:
        raise _not_understood(path, f"a match that is a text of at most {_LONGEST_MATCH} letters", json.dumps(item))
    number: int | None = None
    if bits is not None:
        number = 0 if bits == "default" else whole_number(bits, 1, 8)
        if number is None or number and number not in BITS:
            raise _not_understood(path, f"bits of {', '.join(map(str, BITS))} or default", bits)
    if match.startswith("re:"):
        try:
            re.compile(match[3:])
        except (re.error, RecursionError, OverflowError, ValueError) as error:
            raise _not_understood(path, "a regular expression after re:", f"{match}: {error}") from error
    least = [whole_number(item.get(key, 0), 0, 1 << 62) for key in ("min_elements", "min_in")]
    if None in least:
        raise _not_understood(path, "whole numbers for min_elements and min_in", json.dumps(item))
    return Rule(match, number, least[0] or 0, least[1] or 0, shipped)


# Some regular expressions take longer than the world lasts, and Python's cannot be stopped: they are tried in a process that can.
_SECONDS = 5.0
_SEARCH = (
    "import json, re, sys; pattern, names = json.load(sys.stdin); "
    "json.dump([re.search(pattern, name) is not None for name in names], sys.stdout)"
)


def _search_elsewhere(pattern: str, names: list[str]) -> list[bool]:
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _SEARCH],
            input=json.dumps([pattern, names]),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
        found: list[bool] = json.loads(done.stdout)
        return found
    except subprocess.TimeoutExpired:
        what, found_text = "a regular expression of the recipe takes too long", f"more than {_SECONDS:.0f} s"
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        what, found_text = "a regular expression of the recipe cannot be tried", str(error)
    raise InputError(
        what,
        expected=f"an answer for {len(names)} names",
        found=f"{found_text}: {pattern}",
        fix="avoid repetitions within repetitions, as (a+)+; a glob is often enough",
    )
