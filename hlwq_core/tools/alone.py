"""One run at a time to a target: two would grow the same files beside it, and each would take the other's for its own."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout  # torch and huggingface_hub bring it

from ..errors import InputError


@contextlib.contextmanager
def alone(target: Path) -> Iterator[None]:
    """Hold a target, for this user and machine: the lock lies in a folder of the user's, nothing is left beside the target.

    Raises:
        InputError: another run holds it, or there is no place for the lock.
    """
    try:
        name = hashlib.sha256(os.path.normcase(target.resolve()).encode(errors="surrogateescape")).hexdigest()[:16]
        lock = FileLock(lock_folder() / f"{name}.lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            "another run is writing to this target",
            file=target,
            expected="one run at a time",
            found=f"one that holds {error.lock_file}",
            fix="wait until it has finished, or choose another target",
        ) from error
    except (OSError, NotImplementedError, RuntimeError) as error:  # a loop of links, a file system without locks
        raise InputError(
            "the target cannot be locked against other runs",
            file=target,
            found=str(error) or type(error).__name__,
            fix="let the variable TMPDIR name a folder of your own, on a local disk",
        ) from error
    try:
        yield
    finally:
        lock.release()


def lock_folder() -> Path:
    """The folder of this user's locks, which nobody else can write into; made if it is not there.

    Names in the shared temporary folder can be guessed: what another user put there is left alone.

    Raises:
        InputError: there is none that could be used.
    """
    user = getattr(os, "getuid", lambda: None)()
    places = [Path(tempfile.gettempdir(), f"hlwq-locks-{'' if user is None else user}".rstrip("-"))]
    with contextlib.suppress(RuntimeError):  # nobody's home
        places.append(Path.home() / ".cache" / "comfyui-hlwq" / "locks")
    refused = []
    for folder in places:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            found = folder.lstat()
        except OSError as error:
            refused.append(f"{folder}: {error.strerror or error}")
            continue
        if not stat.S_ISDIR(found.st_mode):
            refused.append(f"{folder} is no folder")
        elif user is not None and (found.st_uid != user or found.st_mode & 0o022):
            refused.append(f"{folder} is not this user's alone")
        elif not os.access(folder, os.W_OK):
            refused.append(f"{folder} cannot be written to")
        else:
            return folder
    raise InputError(
        "there is no folder for locks",
        file=places[0],
        found="; ".join(refused),
        fix="let the variable TMPDIR name a folder of your own",
    )
