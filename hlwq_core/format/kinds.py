"""What a file is that is no safetensors file, told by its first bytes: files go by their content here, never by their names."""

from __future__ import annotations

import re
from dataclasses import dataclass

# So many bytes at the begin of a file tell its kind.
HEAD = 512
_SAFETENSORS = "get the model as .safetensors"
_PAGE = "download the file itself: log in and accept the model's terms where it asks for them, or use `hf download`"
_AGAIN = "the download may have been cut off: fetch the file again and compare its size and sha256"


@dataclass(frozen=True)
class Kind:
    """What a file is: `name` with its article, and what to do about it. `known`: another format that is what it means to be."""

    name: str
    fix: str
    known: bool = False


LFS_POINTER = Kind("a Git LFS pointer, not the file itself", "run `git lfs pull` in that folder, or download the file")
GGUF = Kind("a GGUF file", "load it with the ComfyUI-GGUF nodes", True)
PICKLE = Kind("a pickle (.pt, .pth, .ckpt, .bin): such files can run code and are never opened", _SAFETENSORS, True)
INDEX = Kind(
    "an index of shards (.safetensors.index.json): it names the files that hold the model",
    "name the folder that it lies in, with all the shards beside it",
    True,
)
JSON = Kind("a JSON text", "name the .safetensors file; a config belongs beside it")
HTML = Kind("an HTML page, not the file that it was saved as", _PAGE)
ZEROS = Kind(
    "zeros: a download has reserved the room and not filled it",
    "let the download go on, or fetch the file again and compare its size and sha256",
)

_BEGINNINGS: tuple[tuple[bytes, Kind], ...] = (
    (b"version https://git-lfs", LFS_POINTER),
    (b"GGUF", GGUF),
    (b"FUGG", GGUF),
    *(
        (mark, Kind("a GGML file, GGUF's forerunner", _SAFETENSORS, True))
        for mark in (b"lmgg", b"fmgg", b"tjgg", b"ggjt", b"ggml")
    ),
    *(
        (mark, Kind(f"an archive ({name})", "unpack it, and use the .safetensors files in it"))
        for mark, name in (
            (b"PK\x03\x04", "zip"),
            (b"PK\x05\x06", "zip"),
            (b"\x1f\x8b", "gzip"),
            (b"BZh", "bzip2"),
            (b"\xfd7zXZ", "xz"),
            (b"7z\xbc\xaf\x27\x1c", "7z"),
            (b"\x28\xb5\x2f\xfd", "zstandard"),
            (b"Rar!", "rar"),
        )
    ),
    (b"\x89HDF\r\n", Kind("an HDF5 file (Keras)", _SAFETENSORS, True)),
    (b"\x93NUMPY", Kind("a NumPy array", _SAFETENSORS, True)),
    *(
        (mark, Kind(f"{name}, not a model", "name the .safetensors file"))
        for mark, name in (
            (b"\x89PNG", "a picture (PNG)"),
            (b"\xff\xd8\xff", "a picture (JPEG)"),
            (b"RIFF", "a picture or a sound (RIFF)"),
            (b"GIF8", "a picture (GIF)"),
            (b"%PDF", "a PDF"),
            (b"\x7fELF", "a program"),
            (b"MZ", "a program"),
            (b"\x1aE\xdf\xa3", "a video (Matroska)"),
        )
    ),
)
_PROTOCOLS = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))


def kind_of(head: bytes, size: int) -> Kind | None:
    """What a file is by its first bytes.

    Args:
        head: the first `HEAD` bytes, or all.
        size: bytes of the whole file.

    Returns:
        None where it may be a safetensors file, or is nothing that is known.
    """
    # The length of a header may spell anything, so nothing is read into it where length and `{` fit the file.
    if int.from_bytes(head[:8], "little") <= size - 8 and head[8:9] == b"{":
        return None
    if head[:2] == b"PK" and (b".pkl" in head or b"/version" in head or b"/data/" in head):
        return PICKLE  # torch's zip
    for mark, kind in _BEGINNINGS:
        if head.startswith(mark):
            return kind
    if head[4:8] == b"ftyp":
        return Kind("a video (MP4), not a model", "name the .safetensors file")
    if head.startswith(_PROTOCOLS):
        return PICKLE
    if head[257:262] == b"ustar":
        return Kind("an archive (tar)", "unpack it, and use the .safetensors files in it")
    if len(head) >= 8 and not any(head):
        return ZEROS
    return _text(head)


def _text(head: bytes) -> Kind | None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    start = text[:64].lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<body", b"<!--")):
        return HTML
    if start.startswith((b"{", b"[")):
        return INDEX if b'"weight_map"' in text or b'"total_size"' in text or b'"metadata"' in text[:64] else JSON
    if len(text) < 4 or re.search(rb"[^\t\r\n\x20-\x7e\x80-\xff]", head):
        return None
    words = " ".join(text[:60].decode("utf-8", "replace").split())
    return Kind(f"a text that begins with “{words}”", _AGAIN)
