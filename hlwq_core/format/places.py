"""Where a file grows until it is whole, and what is told when it cannot be written."""

from __future__ import annotations

import errno
from pathlib import Path

from ..errors import DiskFullError, HLWQError, InputError


def partial_path(path: Path) -> Path:
    """Where a file grows until it is whole: beside the target, hidden, and with another ending."""
    return path.with_name(f".{path.name}.partial")


def write_error(path: Path, error: OSError) -> HLWQError:
    """The system's error about writing `path`, in the user's terms."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(
            "the disk is full: this file was not written",
            file=path,
            found=error.strerror,
            fix="free some space on this disk, or choose another folder",
        )
    return InputError(
        "the file cannot be written",
        file=path,
        found=error.strerror or error,
        fix="check that the folder is there and may be written to, or choose another one",
    )
