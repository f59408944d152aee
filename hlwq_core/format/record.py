"""The record of checksums beside a checkpoint, `hlwq.sha256.json`: what was written or published, for verify."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, printable
from .bounded import open_regular, read_object, whole_number
from .places import write_beside

RECORD = "hlwq.sha256.json"
# Metadata of a repair's files: before the name of each file of the record that was not there.
REPAIRED = "hlwq.repaired."
# Metadata of a checkpoint whose biases take up what the codes do to the mean of their layers' outputs.
BIASES, CORRECTED = "hlwq.biases", "corrected"


def file_sha256(path: Path, told: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file, hexadecimal; `told` gets the bytes read and may raise."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(8 << 20):
            digest.update(block)
            if told is not None:
                told(len(block))
    return digest.hexdigest()


def write_record(folder: Path, files: Iterable[Path], told: Callable[[str, int], None]) -> None:
    """Note size and SHA-256 of some files of a folder; `told` gets name and bytes as they are read."""
    noted: dict[str, dict[str, Any]] = {}
    for path in files:
        name = path.relative_to(folder).as_posix()
        digest = file_sha256(path, functools.partial(told, name))
        noted[name] = {"size": path.stat().st_size, "sha256": digest}
    save_record(folder / RECORD, noted)


def save_record(path: Path, files: Mapping[str, Mapping[str, Any]], **notes: str) -> None:
    """Write a record: `files` has `size` and `sha256` by name; `notes` say where they come from."""
    record = {"format": "hlwq-sha256", **notes, "files": dict(files)}
    with write_beside(path) as file:
        file.write(json.dumps(record, indent=1).encode())


def read_record(folder: Path) -> dict[str, dict[str, Any]]:
    """What the record notes: file name → `size` and `sha256`; nothing where there is none.

    Raises:
        InputError: it cannot be read or understood.
    """
    path = folder / RECORD
    if not os.path.lexists(path):
        return {}
    files = read_object(path, "the record of checksums", InputError).get("files")
    noted: dict[str, dict[str, Any]] = {}
    for name, item in files.items() if isinstance(files, dict) else [("files", files)]:
        size = whole_number(item.get("size"), 0, 1 << 60) if isinstance(item, dict) else None
        digest = item.get("sha256") if isinstance(item, dict) else None
        if size is None or not isinstance(digest, str) or not _is_name(name):
            raise InputError(
                "the record of checksums cannot be understood",
                file=path,
                expected="names of files, each with size and sha256",
                found=f"{printable(name)[:100]}: {printable(item)[:100]}",
                fix="remove this file (nothing else needs it), or download the checkpoint again",
            )
        noted[name] = {"size": size, "sha256": digest}
    return noted


def _is_name(name: str) -> bool:
    """Whether a file may have this name, on the systems that there are."""
    try:
        parts = name.encode().split(b"/")
    except UnicodeEncodeError:
        return False
    return "\0" not in name and len(name) < 1000 and all(0 < len(part) <= 255 for part in parts if parts[0] or part)
