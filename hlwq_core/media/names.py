"""Names of saved files: ComfyUI's tokens filled in, a number that nobody else takes, never too long."""

from __future__ import annotations

import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import InputError

LONGEST = 255  # bytes of a name, on every file system that is common
_ROOM = len("_00001_.webm")  # what a name gets behind the prefix
_VALUE = 100  # bytes that a node's value may give: a prompt is no name
_TOKEN = re.compile(r"%([^%]+)%")
_DATE = re.compile(r"d{1,2}|M{1,2}|h{1,2}|m{1,2}|s{1,2}|yyyy|yy")
# What no file name may hold on Windows; ComfyUI's frontend takes these out of values too. Lone surrogates are no text at all.
_FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f\x7f\ud800-\udfff]')
# Devices, whatever the ending; and Windows takes dots and spaces off a folder's end.
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_ENDS_IN_DOT = re.compile(r".*[^. ][. ]+")


@dataclass(frozen=True)
class Place:
    """Where the next file with a prefix goes: `folder`/`name`_`counter`_, or the next free number."""

    folder: Path
    name: str
    counter: int
    subfolder: str = ""

    def first(self, ending: str) -> Path:
        """The name that is free now."""
        return self.folder / f"{self.name}_{self.counter:05}_{ending}"

    def paths(self, ending: str) -> Iterator[Path]:
        """The names to be tried, in order."""
        counter = self.counter
        while True:
            yield self.folder / f"{self.name}_{counter:05}_{ending}"
            counter += 1


def fill_in(
    prefix: str,
    values: Mapping[str, object],
    prompt: Mapping[str, Any] | None = None,
    now: datetime | None = None,
    windows: bool = sys.platform == "win32",
) -> str:
    """A prefix with its tokens filled in, as ComfyUI's page does it before it sends a workflow.

    Args:
        prefix: may hold %date:yyyy-MM-dd hh:mm:ss%, %year% … %second%, %Node.input% (a node by its title or type), and
            the names of `values`.
        values: name -> what is put in its place.
        prompt: the graph in ComfyUI's API form.
        windows: make folders' names such that Windows takes them.

    Returns:
        The prefix; unknown tokens stay, characters that no Windows file may have become "_", long values are cut.
    """
    now = now or datetime.now()
    known: dict[str, object] = {
        "year": f"{now.year}",
        **{name: f"{getattr(now, name):02}" for name in ("month", "day", "hour", "minute", "second")},
        **values,
    }

    def value(match: re.Match[str]) -> str:
        token = match[1]
        if token.startswith("date:"):
            return _plain(_date(token[5:], now))
        if token in known:
            return _plain(known[token])
        node, dot, name = token.rpartition(".")
        if dot and prompt is not None:
            found = _input(prompt, node, name)
            if found is not None:
                return _plain(found).encode()[:_VALUE].decode(errors="ignore")
        return match[0]

    filled = _FORBIDDEN.sub("_", _TOKEN.sub(value, prefix))
    if not windows:
        return filled
    *folders, name = re.split(r"[/\\]", filled)
    return "/".join([*(f"{f}_" if _DEVICE.fullmatch(f) or _ENDS_IN_DOT.fullmatch(f) else f for f in folders), name])


def _plain(value: object) -> str:
    return re.sub(r"[/\\]", "_", _FORBIDDEN.sub("_", str(value)))


def _date(pattern: str, now: datetime) -> str:
    parts = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}

    def part(match: re.Match[str]) -> str:
        text = match[0]
        if text[0] == "y":
            return f"{now.year:04}"[-len(text) :]
        return f"{parts[text[0]]:0{len(text)}}"

    return _DATE.sub(part, pattern)


def _input(prompt: Mapping[str, Any], node: str, name: str) -> object:
    """A plain value of a node's input; the node is found by its title, else by its type."""
    for matches in (lambda entry: entry.get("_meta", {}).get("title"), lambda entry: entry.get("class_type")):
        for entry in prompt.values():
            if matches(entry) == node:
                value = entry.get("inputs", {}).get(name)
                if isinstance(value, (str, int, float)):
                    return value
    return None


def check_prefix(prefix: str) -> None:
    """Refuse a prefix that leaves no room for the number and the ending.

    Raises:
        InputError: a part of it is too long for any file system.
    """
    parts = re.split(r"[/\\]", prefix)
    for part in parts:
        longest = LONGEST - _ROOM if part is parts[-1] else LONGEST
        size = len(part.encode())
        if size > longest:
            raise InputError(
                "the file's name is too long",
                file=part,
                expected=f"at most {longest} bytes, to leave room for the number and the ending"
                if part is parts[-1]
                else f"at most {longest} bytes for a folder",
                found=f"{size} bytes",
                fix="take a shorter filename_prefix",
            )


def unfinished_name(name: str, ending: str) -> str:
    """For a file that is to be found if it is never finished."""
    extra = f".unfinished-{secrets.token_hex(3)}{ending}"
    stem = name.removesuffix(ending) if ending else name
    return stem.encode()[: LONGEST - len(extra)].decode(errors="ignore") + extra


def move_new(source: Path, target: Path) -> None:
    """Give a finished file or folder its name, unless that is taken.

    Raises:
        FileExistsError: it is.
    """
    if source.is_dir() or sys.platform == "win32":
        if target.exists():
            raise FileExistsError(target)
        os.rename(source, target)  # refuses a file on Windows, and a folder that is not empty elsewhere
        return
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        os.close(os.open(target, os.O_CREAT | os.O_EXCL))
        os.replace(source, target)
        return
    source.unlink()
