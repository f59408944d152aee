"""One run at a time to a target: two would grow the same files beside it, and each would take the other's for its own."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout  # torch and huggingface_hub bring it

from ..errors import InputError


@contextlib.contextmanager
def alone(target: Path) -> Iterator[None]:
    """Hold a target, for this machine: the lock lies in the system's temporary folder, nothing is left beside the target.

    Raises:
        InputError: another run holds it.
    """
    # Each user's own: another's file could not be opened.
    key = f"{getattr(os, 'getuid', int)()} {target.resolve()}"
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    lock = FileLock(Path(tempfile.gettempdir()) / f"hlwq-{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            "another run is writing to this target",
            file=target,
            expected="one run at a time",
            found=f"one that holds {lock.lock_file}",
            fix="wait until it has finished, or choose another target",
        ) from error
    try:
        yield
    finally:
        lock.release()
