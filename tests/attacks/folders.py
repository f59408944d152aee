"""Folders and files that a models folder should not hold and does: each attack makes one below a folder.

Runnable alone, to try them on a ComfyUI: `python tests/attacks/folders.py FOLDER [NAME …]`; without names it lists them.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def safetensors(header: object, data: bytes = b"") -> bytes:
    """A file's bytes of any header: JSON-able, or raw bytes."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def tensor(shape: list[Any], start: int = 0, stop: int = 0, dtype: str = "F16") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def header_file(header: object, data: bytes = b"") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "x.safetensors").write_bytes(safetensors(header, data))

    return make


def empty_tensors(megabytes: float, codes: bool = False) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        ending = "__packed" if codes else ""
        count = int(megabytes * 1e6 / 66)
        parts = (f'"t{i:08}{ending}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(count))
        (folder / "x.safetensors").write_bytes(safetensors(b"{" + ",".join(parts).encode() + b"}"))

    return make


def deep_tree(depth: int) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        here = os.open(folder, os.O_RDONLY)
        for _ in range(depth):
            os.mkdir("d", dir_fd=here)
            below = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(here)

    return make


def remove_deep_tree(folder: Path) -> None:
    """What shutil cannot: a path longer than the system takes."""
    while (folder / "d").exists():
        inner = folder / "d" / "d"
        if inner.exists():
            inner.rename(folder / "next")
        (folder / "d").rmdir()
        if (folder / "next").exists():
            (folder / "next").rename(folder / "d")


def fifo(folder: Path) -> None:
    os.mkfifo(folder / "x.safetensors")


def unix_socket(folder: Path) -> None:
    here = os.getcwd()
    os.chdir(folder)  # the name of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("x.safetensors")
    finally:
        os.chdir(here)


def device(folder: Path) -> None:
    (folder / "x.safetensors").symlink_to("/dev/zero")


def folder_named_as_file(folder: Path) -> None:
    (folder / "x.safetensors").mkdir()


def link_to_ancestor(folder: Path) -> None:
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "back").symlink_to(folder, target_is_directory=True)
    (folder / "a" / "up").symlink_to("..", target_is_directory=True)


def link_loops(folder: Path) -> None:
    (folder / "one.safetensors").symlink_to("two.safetensors")
    (folder / "two.safetensors").symlink_to("one.safetensors")
    (folder / "self").symlink_to("self")
    (folder / "gone.safetensors").symlink_to("nowhere")


def names_that_are_no_text(folder: Path) -> None:
    inside = os.fsencode(folder) + b"/caf\xe9"
    os.mkdir(inside)
    for path in (inside + b"/model.safetensors", os.fsencode(folder) + b"/\xff\xfe.safetensors"):
        with open(path, "wb") as file:
            file.write(safetensors({"a__packed": tensor([0], dtype="U8")}))


def strange_names(folder: Path) -> None:
    for name in ("a\nb.safetensors", "\x1b[2Jx.safetensors", "<img src=x>.safetensors", "n" * 240 + ".safetensors"):
        (folder / name).write_bytes(safetensors({"a": tensor([0])}))


def many_files(count: int) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        whole = safetensors({"a": tensor([0])})
        inside = folder / "many"
        inside.mkdir()
        first = inside
        for i in range(count):
            path = inside / f"{i}.safetensors"
            if i % 50_000 == 0:  # a file has so many names and not many more
                path.write_bytes(whole)
                first = path
            else:
                os.link(first, path)

    return make


def torch_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "x.safetensors", "w") as made:
        made.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        made.writestr("archive/version", b"3\n")


def written(data: bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "x.safetensors").write_bytes(data)

    return make


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 46000000000\n"

# Files that are something else, by what the message must call them.
OTHER_KINDS: dict[str, Callable[[Path], None]] = {
    "Git LFS pointer": written(LFS_POINTER),
    "HTML page": written(b"<!DOCTYPE html>\n<html><head><title>Log in</title></head></html>"),
    "index of shards": written(b'{\n  "metadata": {"total_size": 1},\n  "weight_map": {"a": "m-1.safetensors"}\n}'),
    "JSON text": written(b'{"error":"Repository not found"}'),
    "begins with “Entry not found”": written(b"Entry not found"),
    "GGUF": written(b"GGUF\x03\0\0\0" + bytes(64)),
    "a pickle": written(pickle.dumps({"a": 1}, 2) + bytes(64)),
    "pickle (.pt": torch_zip,
    "archive (gzip)": written(b"\x1f\x8b\x08" + b"\xa5" * 100),
    "zeros": written(bytes(4096)),
    "too short": written(b""),
}

HEADERS: dict[str, Callable[[Path], None]] = {
    "metadata is a text": header_file({"__metadata__": "x", "a": tensor([0])}),
    "metadata is a number": header_file({"__metadata__": 5}),
    "metadata of numbers": header_file({"__metadata__": {"a": 5}}),
    "a header of null": header_file(b"null"),
    "a tensor is a list": header_file({"a": [1, 2, 3]}),
    "a shape is a text": header_file({"a": {"dtype": "F16", "shape": "12", "data_offsets": [0, 0]}}),
    "a dtype is a list": header_file({"a": {"dtype": [], "shape": [0], "data_offsets": [0, 0]}}),
    "300,000 dimensions": header_file({"a": tensor([1] * 300_000, 0, 2)}, b"\0\0"),
    "300,000 large dimensions": header_file({"a": tensor([9] * 300_000)}),
    "a shape beyond memory": header_file({"a__packed": tensor([1 << 62, 1 << 62, 0])}),
    "a number beyond all": header_file(b'{"a":{"dtype":"F16","shape":[1e400],"data_offsets":[0,0]}}'),
    "an int of 5,000 digits": header_file(b'{"a":{"dtype":"F16","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,0]}}'),
    "nested deeply": header_file(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "half a character in a name": header_file(b'{"a\\ud800__packed":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
    "control characters in a name": header_file(b'{"a\\u001b[2J":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
    "UTF-16": header_file('{"a": 1}'.encode("utf-16")),
    "10 MB of empty tensors": empty_tensors(10),
    "10 MB of empty codes": empty_tensors(10, codes=True),
    "100 MB of empty tensors": empty_tensors(99),
}

FOLDERS: dict[str, Callable[[Path], None]] = {
    "FIFO": fifo,
    "socket": unix_socket,
    "device": device,
    "folder named as a file": folder_named_as_file,
    "link to an ancestor": link_to_ancestor,
    "link loops": link_loops,
    "a tree 1,900 deep": deep_tree(1900),
    "names that are no text": names_that_are_no_text,
    "strange names": strange_names,
}
ATTACKS = OTHER_KINDS | HEADERS | FOLDERS

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("\n".join([__doc__ or "", *ATTACKS]))
    for name in sys.argv[2:] or ATTACKS:
        target = Path(sys.argv[1]) / name.replace("/", "_")
        target.mkdir(parents=True)
        ATTACKS[name](target)
