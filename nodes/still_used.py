"""What somebody still holds of a checkpoint, by its files: a loader of which an option was changed takes it again instead of reading
it anew. Nothing is held for that: what nobody uses any more is gone, as without this module."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..hlwq_core.checkpoints.find import files_of
from . import model_loading
from .running import as_chosen
from .running.choices import DEFAULT, Choices

_held: weakref.WeakValueDictionary[Hashable, Any] = weakref.WeakValueDictionary()


def fingerprint(path: Path) -> list[tuple[str, int, int]]:
    """A checkpoint's files with their sizes (bytes) and times of change (ns): one that was repaired or replaced is another."""
    files = files_of(path) if path.is_dir() else [path]
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def vae(path: Path, part: str, read_as: tuple[str | None, ...], load: Callable[[], Any | None]) -> Any | None:
    """A VAE of a checkpoint: the one that is in use, or else what `load` gives.

    Args:
        path: folder or file.
        part: which VAE.
        read_as: how the codes are read.
        load: loads it; None where the checkpoint has none.
    """
    key = (part, read_as, *fingerprint(path))
    found = _held.get(key)
    if found is None:
        found = load()
        if found is not None:
            _held[key] = found
    return found


def diffusion_model(path: Path, chosen: Choices, load: Callable[[], Any]) -> tuple[Any, bool]:
    """A patcher of a checkpoint's diffusion model: of the one in use, if all that was changed is how it runs, else of a new one.

    Args:
        path: folder or file.
        chosen: how it is read, decoded and run.
        load: gives the new one's patcher.

    Returns:
        A patcher of it, and whether it was in use.
    """
    of_its_weights = replace(chosen, **{name: getattr(DEFAULT, name) for name in as_chosen.OF_A_RUN})
    key = ("diffusion model", of_its_weights, *fingerprint(path))
    found = _held.get(key)
    in_use = found is not None
    if found is None:
        found = _held[key] = load()
    # The clone holds the one it came from, which no node is given: what nodes put into their patcher goes with that.
    return model_loading.run_as_chosen(found.clone(), chosen), in_use
