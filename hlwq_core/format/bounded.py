"""Reading what others wrote: regular files only, no more bytes than can be meant, and JSON whose form is known before it is used."""

from __future__ import annotations

import io
import json
import os
import stat
from pathlib import Path
from typing import Any

from ..errors import FormatError, HLWQError, InputError

# Side files (configs, indexes, records, recipes) come to kilobytes; the largest index of a published model has 9 MB.
JSON_LIMIT = 64 << 20
# Containers within containers: Python's own limit depends on who calls, and what was parsed is written again elsewhere.
_DEPTH = 64
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def no_file(mode: int) -> str | None:
    """What a path is instead of a regular file, by its `st_mode`; None if it is one."""
    if stat.S_ISREG(mode):
        return None
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "no regular file")


def open_regular(path: str | os.PathLike[str]) -> io.FileIO:
    """Open a file for reading, unbuffered.

    Whatever is no regular file is refused before it is opened: a FIFO waits for a writer for ever, a device may act.

    Raises:
        OSError: there is nothing, or it may not be read.
        InputError: it is no regular file, or the name is none.
    """
    try:
        kind = no_file(os.stat(path).st_mode)
        if kind is None:
            # What was a file may have become a FIFO since: opened so, it does not wait, and is looked at again.
            flags = (
                os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
            )
            file = io.FileIO(os.open(path, flags))
            kind = no_file(os.fstat(file.fileno()).st_mode)
            if kind is None:
                return file
            file.close()
    except ValueError as error:
        raise InputError("this is no name of a file", found=ascii(path), fix="correct the path") from error
    raise InputError(
        "this is no regular file", file=path, expected="a file on a disk", found=kind, fix="name the file itself"
    )


def unreadable(path: str | os.PathLike[str], error: OSError, expected: str) -> InputError:
    """The system's error about reading `path`, in the user's terms."""
    return InputError(
        "the file cannot be read",
        file=path,
        expected=expected,
        found=error.strerror or str(error),
        fix="correct the path, or the file's permissions",
    )


def read_bytes(path: str | os.PathLike[str], what: str, limit: int = JSON_LIMIT) -> bytes:
    """A small file whole.

    Args:
        what: what it should be, for the messages.
        limit: more bytes than it can have.

    Raises:
        InputError: it cannot be read, or is no regular file.
        FormatError: it is larger than that.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            parts, left = [], limit + 1
            while size <= limit and left and (part := file.read(left)):
                parts.append(part)
                left -= len(part)
    except OSError as error:
        raise unreadable(path, error, what) from error
    if size > limit or not left:
        raise FormatError(
            f"this is too large to be {what}",
            file=path,
            expected=f"at most {limit:,} bytes",
            found=f"{max(size, limit + 1):,} bytes",
            fix="replace it by the model's own, or remove it",
        )
    return b"".join(parts)


def parse_json(
    raw: bytes | str, what: str, file: str | os.PathLike[str] | None = None, error: type[HLWQError] = FormatError
) -> Any:
    """JSON as Python values, numbers finite, nested at most 64 deep.

    Args:
        raw: UTF-8, with or without a byte order mark.
        what: what it should be, for the messages.
        error: the class that is raised.
    """
    try:
        if isinstance(raw, bytes):
            if raw[:2] in (b"\xff\xfe", b"\xfe\xff") or (raw[:1] and not all(raw[:2])):
                raise ValueError("the text is UTF-16, and JSON is UTF-8")
            raw = raw.decode("utf-8-sig")
        values = json.loads(raw, parse_constant=_no_number, parse_float=_finite)
        _check_depth(values)
    except (ValueError, RecursionError) as reason:
        too_deep = isinstance(reason, RecursionError)
        raise error(
            f"{what} is no JSON",
            file=file,
            expected="JSON in UTF-8",
            found=f"containers nested more than {_DEPTH} deep" if too_deep else reason,
            fix="replace it by the model's own",
        ) from None
    return values


def parse_object(
    raw: bytes | str, what: str, file: str | os.PathLike[str] | None = None, error: type[HLWQError] = FormatError
) -> dict[str, Any]:
    """A JSON object, see `parse_json`."""
    values = parse_json(raw, what, file, error)
    if not isinstance(values, dict):
        raise error(
            f"{what} is no JSON object",
            file=file,
            expected="a JSON object: {…}",
            found=type(values).__name__,
            fix="replace it by the model's own",
        )
    return values


def read_object(path: str | os.PathLike[str], what: str, error: type[HLWQError] = FormatError) -> dict[str, Any]:
    """The JSON object in a file, see `read_bytes` and `parse_json`; whatever is wrong with it is an `error`."""
    try:
        raw = read_bytes(path, what)
    except error:
        raise
    except HLWQError as found:
        raise error(found.what, file=found.file, expected=found.expected, found=found.found, fix=found.fix) from found
    return parse_object(raw, what, path, error)


def whole_number(value: object, least: int, most: int) -> int | None:
    """A number out of a file as an int if it is whole and within bounds, else None. JSON does not tell 5 from 5.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and least <= value <= most else None


def is_file(path: Path) -> bool:
    """Whether something lies there that can be meant as a file; what it is, opening tells. Never raises."""
    try:
        return not stat.S_ISDIR(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:40]} is too large a number")
    return value


def _check_depth(values: Any) -> None:
    level = [values]
    for _ in range(_DEPTH):
        inside: list[Any] = []
        for container in level:
            if isinstance(container, dict):
                inside += container.values()
            elif isinstance(container, list):
                inside += container
        level = [item for item in inside if isinstance(item, (dict, list))]
        if not level:
            return
    raise RecursionError
