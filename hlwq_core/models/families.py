"""The table of model families, and the questions that are asked of all of them."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Collection
from dataclasses import dataclass

from .family import DIFFUSION, Family

# Modules, each with a `FAMILY`. The first that recognises a checkpoint is it: what has fewer marks stands further down.
_TABLE = ("ltx25", "ltx23", "ltx2", "ltx")
FAMILIES: tuple[Family, ...] = tuple(importlib.import_module(f".{name}", __package__).FAMILY for name in _TABLE)
# What was published before files said what they are.
DEFAULT = next(family for family in FAMILIES if family.key == "ltx23")
REPOSITORY_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Found:
    """A family, and whether the checkpoint's names lack the diffusion model's prefix."""

    family: Family
    bare: bool = False

    def canonical(self, name: str) -> str:
        """A name of the checkpoint as the family has it."""
        return DIFFUSION + name if self.bare else name

    def own(self, name: str) -> str:
        """A name of the family as the checkpoint has it."""
        return name.removeprefix(DIFFUSION) if self.bare else name


def recognise(names: Collection[str]) -> Found | None:
    """The family that tensor names are of, with or without the diffusion model's prefix; None for an unknown one."""
    bare = not any(name.startswith(DIFFUSION) for name in names)
    full = [DIFFUSION + name for name in names] if bare else names
    family = next((family for family in FAMILIES if family.is_one(full)), None)
    return Found(family, bare) if family else None


def by_key(key: str) -> Family:
    """The family of a key; the default one for an unknown key."""
    return next((family for family in FAMILIES if family.key == key), DEFAULT)


def repositories() -> tuple[str, ...]:
    """Where checkpoints of all families are published."""
    return tuple(repository for family in FAMILIES for repository in family.repositories)


def published() -> dict[str, int]:
    """What is published: repository → about the bytes that it takes on the disk."""
    return {name: family.published_bytes for family in FAMILIES for name in family.repositories}


def recipe_of(names: Collection[str], otherwise: str = "plain") -> str:
    """The recipe for a model with these tensors; `otherwise` for one of no known family."""
    found = recognise(names)
    return found.family.recipe if found else otherwise


@functools.lru_cache(maxsize=1)
def undotted_names() -> dict[str, str]:
    """V1's names (`__` for `.`) → the published models' names: undoing `__` is ambiguous."""
    return {name.replace(".", "__"): name for family in FAMILIES for name in family.tensors()}


@functools.lru_cache(maxsize=1)
def _shapes() -> dict[str, tuple[int, ...]]:
    return {name: shape for family in reversed(FAMILIES) for name, (_, shape) in family.tensors().items()}


def shape(name: str) -> tuple[int, ...] | None:
    """The shape that a published model gives a tensor of this name; None if none has it."""
    return _shapes().get(name)
