"""What a file is called while it is written, and the removal of what writers left behind that were killed.

A writer holds a lock on its unfinished file, which ends with its process, however that ends. So whoever writes to the same folder next
can tell what nobody works on any more.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, which does not let go of a file that is open
    fcntl = None  # type: ignore[assignment]

_OURS = re.compile(r"\.hlwq-[0-9a-f]{12}(\.[a-z0-9]+)?")


class Partial:
    """An unfinished file, or folder, beside `target`: `path`, of a short name, another one for each."""

    def __init__(self, target: Path, ending: str):
        """Remove what killed writers left in the folder, and take a name. What cannot be made there is an error of whoever
        writes to `path`."""
        _remove_left(target.parent)
        self._held: int | None = None
        while not self._take(target, ending):
            self.release()  # another writer, tidying up, took it for left behind before it was locked

    def _take(self, target: Path, ending: str) -> bool:
        """Make the file, or folder, and lock it; whether it is there still."""
        self.path = target.with_name(f".hlwq-{secrets.token_hex(6)}{ending}")
        try:
            if not ending:
                self.path.mkdir()
            else:
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except OSError:
            return True
        try:
            self._held = _lock(self.path)
            return self._held is None or os.path.samestat(os.fstat(self._held), self.path.lstat())
        except (BlockingIOError, FileNotFoundError):
            return False
        except OSError:
            return True  # a file system without locks

    def release(self) -> None:
        """Nobody works on it any more: it has its name, or is removed."""
        if self._held is not None:
            os.close(self._held)
            self._held = None


def _lock(path: Path) -> int | None:
    """A descriptor that holds the file or folder; None where there are no such locks.

    Raises:
        BlockingIOError: somebody else holds it.
    """
    if fcntl is None:
        return None
    held = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        raise
    return held


def _remove_left(folder: Path) -> None:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        found = [
            (Path(entry.path), entry.is_dir(follow_symlinks=False)) for entry in entries if _OURS.fullmatch(entry.name)
        ]
        for path, is_folder in found:
            if is_folder and fcntl is None:
                continue  # no file of it need be open just now
            with contextlib.suppress(OSError):  # it is held, or cannot be removed
                held = _lock(path)
                try:
                    shutil.rmtree(path) if is_folder else path.unlink()
                finally:
                    if held is not None:
                        os.close(held)
