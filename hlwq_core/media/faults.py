"""What went wrong while a file was written, told as what it was: the disk, the folder, the name or the encoder."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

import av

from ..errors import MediaError

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class Refused(Exception):
    """An encoder's refusal, on its way to whoever knows the file's name. `who` refused; `what` can be done."""

    def __init__(self, who: str, what: str, error: Exception):
        super().__init__(str(error))
        self.who, self.what, self.error = who, what, error


@contextlib.contextmanager
def refusing(who: str, what: str) -> Iterator[None]:
    """Within, FFmpeg's errors are refusals of an encoder, unless the disk is full."""
    try:
        yield
    except (av.FFmpegError, ValueError, OSError) as error:
        if getattr(error, "errno", None) in _FULL:
            raise
        raise Refused(who, what, error) from error


@contextlib.contextmanager
def told(path: Path, kept: Path | None = None) -> Iterator[None]:
    """Errors of files and encoders as MediaError about `path`, the place where the file was to be.

    Args:
        kept: the file that what was coded so far stays in; None: it is removed.

    Raises:
        MediaError: names what happened and what to do.
    """
    left = f"what was coded so far is in {kept.name}" if kept is not None else "nothing was left behind"
    try:
        yield
    except Refused as refused:
        raise MediaError(
            f"{refused.who} refused",
            file=path,
            expected="pictures and sound that the encoder takes",
            found=_words(refused.error),
            fix=f"{refused.what}; {left}",
        ) from refused.error
    except (av.FFmpegError, OSError) as error:
        raise _of_the_file(path, error, left) from error


def _of_the_file(path: Path, error: Exception, left: str) -> MediaError:
    number = getattr(error, "errno", None)
    folder = path.parent
    if number in _FULL:
        return MediaError(
            "the disk is full",
            file=path,
            expected="room for the whole file",
            found=error,
            fix=f"free some space and save again; {left}",
        )
    if number == errno.ENAMETOOLONG:
        return MediaError(
            "the file's name is too long",
            file=path,
            expected="a name of at most 255 bytes, of which the number and the ending take some",
            found=f"{len(path.name.encode())} bytes",
            fix="take a shorter filename_prefix",
        )
    if number in _FORBIDDEN:
        return MediaError(
            "the folder cannot be written to",
            file=path,
            expected=f"the right to write to {folder}",
            found=error,
            fix="give ComfyUI's user that right, or choose another folder",
        )
    if number == errno.ENOENT and not folder.is_dir():
        return MediaError(
            "the folder does not exist",
            file=path,
            expected=f"a folder {folder}",
            found=error,
            fix="make the folder, or choose another",
        )
    return MediaError(
        "the video could not be written",
        file=path,
        expected="a file that can be written to its end",
        found=_words(error),
        fix="see what the system says above; try another folder or another codec",
    )


def _words(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
