"""Where a file grows until it is whole, and what is told when it cannot be written."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

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


@contextlib.contextmanager
def write_beside(path: Path, beside: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write to; at the end of the block it is flushed to the disk and renamed: `path` is whole or untouched.

    Args:
        path: the target; an existing file is replaced.
        beside: where it grows, on the same disk; `partial_path` if None.

    Raises:
        DiskFullError: as its name says.
        InputError: the file cannot be written.
    """
    beside = beside or partial_path(path)
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            beside.unlink()
