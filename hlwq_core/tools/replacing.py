"""Replacing several files as one: a journal names the renames, and whoever comes next finishes what a killed run began.

One rename is atomic, several are not. What is new lies beside its place, whole, before the first of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import InputError
from ..format.places import write_beside

# Of a name in a journal: what it cannot have, and its greatest length.
_NO_NAME = re.compile("[\\\\:\x00-\x1f\ud800-\udfff]")
_LONGEST = 1000

Renames = Iterable[tuple[Path, Path]]


def replace_all(
    journal: Path, root: Path, *, away: Renames = (), into: Renames = (), discard: Iterable[Path] = ()
) -> None:
    """Rename everything, or leave a journal from which `finish` goes on.

    Args:
        journal: where it is kept meanwhile.
        root: the folder that all of it lies in.
        away: what is replaced, to places where nothing lies; first.
        into: what is new, to its place.
        discard: files and folders that are of no use afterwards.

    Raises:
        InputError, DiskFullError: the journal cannot be written; nothing was renamed.
        OSError: a rename failed; the journal stays.
    """
    steps = {
        "away": [[_inside(root, path) for path in pair] for pair in away],
        "into": [[_inside(root, path) for path in pair] for pair in into],
        "discard": [_inside(root, path) for path in discard],
    }
    _write(journal, steps)
    finish(journal, root)


def finish(journal: Path, root: Path) -> bool:
    """Go on where a killed run stopped; False where there is no journal.

    Raises:
        InputError: the journal is none of ours.
        OSError: it cannot be read, or a rename failed.
    """
    steps = _read(journal, root)
    if steps is None:
        return False
    for source, target in steps["away"]:
        # The same name may hold what is new by now: what lies in its place of rest already was done.
        if not os.path.lexists(target) and os.path.lexists(source):
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
    for source, target in steps["into"]:
        if os.path.lexists(source):
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
    # What was replaced is taken for "not yet put away" once it is gone: nothing is renamed from here on.
    _write(journal, {"away": [], "into": [], "discard": [_inside(root, path) for path in steps["discard"]]})
    for path in steps["discard"]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    journal.unlink(missing_ok=True)
    return True


def _write(journal: Path, steps: dict[str, Any]) -> None:
    with write_beside(journal) as file:
        file.write(json.dumps({"format": "hlwq-replacing", **steps}).encode())


def _inside(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _read(journal: Path, root: Path) -> dict[str, Any] | None:
    """The steps as paths. The file may be anybody's: nothing outside of `root` is named by it."""
    try:
        with open(journal, "rb") as file:
            found = json.loads(file.read(16 << 20))
        if found["format"] != "hlwq-replacing":
            raise ValueError("another format")
        if not all(isinstance(found[kind], list) for kind in ("away", "into", "discard")):
            raise ValueError("steps that are no lists")
        return {
            "away": [(_below(root, a), _below(root, b)) for a, b in found["away"]],
            "into": [(_below(root, a), _below(root, b)) for a, b in found["into"]],
            "discard": [_below(root, name) for name in found["discard"]],
        }
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            "the journal of an unfinished replacement cannot be understood: nothing was changed",
            file=journal,
            found=f"{type(error).__name__}: {error}",
            fix="if no run of yours was killed here, delete this file; else look what of the checkpoint lies beside it",
        ) from error


def _below(root: Path, name: Any) -> Path:
    if not isinstance(name, str) or _NO_NAME.search(name) or len(name) > _LONGEST:
        raise ValueError(f"no name of a file: {name!r:.200}")
    pure = PurePosixPath(name)
    if pure.is_absolute() or not pure.parts or ".." in pure.parts:
        raise ValueError(f"a name outside of the folder: {name!r}")
    path = root / pure
    if not path.parent.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"a link leads out of the folder: {name!r}")
    return path
