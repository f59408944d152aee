"""The VAEs that somebody still holds, by the checkpoint that they came from: a loader of which another option was changed takes
them again instead of reading them anew. What depends on the options, the diffusion model, is loaded as they say."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from ..hlwq_core.checkpoints.find import files_of

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
