"""Safetensors files as maps: headers are read and checked here, tensors are views of the mapped file.

What can be wrong with a file, each with a message of its own: missing, empty, no regular file, another format (`kinds`), a
header longer than the file, a header that is no JSON, an unknown dtype, bytes that do not fit the shape, offsets that
overlap or leave holes, a file cut short or with a tail.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ChangedError, FormatError, InputError, UnsupportedError
from .bounded import open_regular, unreadable
from .kinds import HEAD, kind_of

# The first is safetensors' own. LTX-2.3 has 8,641 tensors in HLWQ, in headers of well under 2 MB.
MAX_HEADER = 100_000_000
MAX_TENSORS = 200_000
MAX_VALUES = 4_000_000
MAX_RANK = 32
MAX_NAME = 1000
_NO_NAME = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
DTYPES: dict[str, tuple[torch.dtype, int]] = {
    "F64": (torch.float64, 8),
    "F32": (torch.float32, 4),
    "F16": (torch.float16, 2),
    "BF16": (torch.bfloat16, 2),
    "F8_E4M3": (torch.float8_e4m3fn, 1),
    "F8_E5M2": (torch.float8_e5m2, 1),
    "I64": (torch.int64, 8),
    "I32": (torch.int32, 4),
    "I16": (torch.int16, 2),
    "I8": (torch.int8, 1),
    "U8": (torch.uint8, 1),
    "BOOL": (torch.bool, 1),
}
NAMES = {dtype: name for name, (dtype, _) in DTYPES.items()}

_AGAIN = "the download may have been cut off: fetch the file again and compare its size and sha256"


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: `dtype` as safetensors names it, bytes `start` to `stop` of the data part."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


def read_header(path: str | os.PathLike[str]) -> tuple[dict[str, Entry], dict[str, str]]:
    """Read and check a file's header; no tensor is read.

    Returns:
        Entries by tensor name, and the file's metadata.

    Raises:
        InputError: no such file, or no regular one.
        UnsupportedError: a known other format (GGUF, pickle).
        FormatError: not a whole safetensors file.
    """
    entries, metadata, _ = _look(Path(path))
    return entries, metadata


def _look(path: Path) -> tuple[dict[str, Entry], dict[str, str], os.stat_result]:
    try:
        with open_regular(path) as file:
            return *_read_header(path, file), os.fstat(file.fileno())
    except OSError as error:
        raise unreadable(path, error, "a safetensors file that may be read") from error


def _read_header(path: Path, file: io.FileIO) -> tuple[dict[str, Entry], dict[str, str]]:
    size = os.fstat(file.fileno()).st_size
    head = file.read(HEAD)
    refuse_other_kinds(path, head, size)
    length = int.from_bytes(head[:8], "little")
    if length > min(MAX_HEADER, size - 8):
        raise FormatError(
            "the header is longer than the file: it is cut off, or no safetensors file",
            file=path,
            expected=f"at most {min(MAX_HEADER, size - 8)} bytes of header",
            found=length,
            fix=_AGAIN,
        )
    raw = head[8 : 8 + length]
    while len(raw) < length and (part := file.read(length - len(raw))):
        raw += part
    try:
        header = _parse(raw)
        metadata = header.pop("__metadata__", None) or {}
        if any(type(value) is not str for value in metadata.values()):
            raise ValueError("__metadata__ holds something else than texts")
        entries = {name: _entry(path, name, fields) for name, fields in header.items()}
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(
            "the header is no valid safetensors header",
            file=path,
            expected="a JSON object of tensors with dtype, shape and data_offsets",
            found=f"{type(error).__name__}: {error}",
            fix=_AGAIN,
        ) from error
    _check_layout(path, entries, size - 8 - length)
    return entries, metadata


def _parse(raw: bytes) -> dict[str, Any]:
    # Before anything is made of them: objects take ten times the memory of their text, and minutes where they are many.
    if raw.count(b'"data_offsets"') > MAX_TENSORS or raw.count(b",") > MAX_VALUES:
        raise ValueError(f"more than {MAX_TENSORS:,} tensors, or more values than they can have")
    header: dict[str, Any] = json.loads(raw.decode("utf-8"))
    for name in header:
        if len(name) > MAX_NAME:
            raise ValueError(f"a name of {len(name):,} letters: {name[:40]!r}…")
        if _NO_NAME.search(name):
            raise ValueError(f"{name[:100]!a} is no name: it has control characters")
    return header


def refuse_other_kinds(path: Path, head: bytes, size: int) -> None:
    """Name what is no safetensors file for what it is.

    Raises:
        UnsupportedError: a known other format (GGUF, pickle).
        FormatError: something else than a file of weights, or too short for one.
    """
    kind = kind_of(head, size)
    if kind is not None:
        raise (UnsupportedError if kind.known else FormatError)(
            f"this is {kind.name}", file=path, expected="a safetensors file", found=kind.name, fix=kind.fix
        )
    if len(head) < 8:
        raise FormatError(
            "the file is too short to be safetensors",
            file=path,
            expected="8 bytes and more",
            found=f"{size} bytes",
            fix=_AGAIN,
        )


def _entry(path: Path, name: str, fields: dict[str, Any]) -> Entry:
    dtype, shape = fields["dtype"], fields["shape"]
    if len(shape) > MAX_RANK:
        raise ValueError(f"{name}: a shape of {len(shape):,} numbers")
    shape = tuple(shape)
    start, stop = fields["data_offsets"]
    if any(type(n) is not int or not 0 <= n < 1 << 63 for n in (*shape, start, stop)):
        raise ValueError(f"{name}: shape and offsets must be integers, none negative, none above 2^63")
    if dtype not in DTYPES:
        raise UnsupportedError(
            "a dtype that this pack does not know",
            file=path,
            tensor=name,
            expected=", ".join(DTYPES),
            found=dtype,
            fix="update the pack; if this is the newest, get the model in another dtype",
        )
    count, width = math.prod(shape), DTYPES[dtype][1]
    # Strides are numbers too: an empty tensor of [2^62, 2^62, 0] has none that a computer can hold.
    if not count and math.prod(n for n in shape if n) * width >= 1 << 63:
        raise ValueError(f"{name}: a shape beyond all memory, {list(shape)}")
    if stop - start != count * width:
        raise FormatError(
            "the tensor's bytes do not fit its shape",
            file=path,
            tensor=name,
            expected=f"{count * width} bytes for {dtype} {list(shape)}",
            found=f"{stop - start} bytes",
            fix=_AGAIN,
        )
    return Entry(dtype, shape, start, stop)


def _check_layout(path: Path, entries: dict[str, Entry], data_size: int) -> None:
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != position:
            raise FormatError(
                "tensors overlap or leave holes",
                file=path,
                tensor=name,
                expected=f"data at byte {position}",
                found=f"byte {entry.start}",
                fix=_AGAIN,
            )
        position = entry.stop
    if position != data_size:
        raise FormatError(
            "the file is cut off" if position > data_size else "the file has bytes after its last tensor",
            file=path,
            expected=f"{position} bytes of tensors",
            found=f"{data_size} bytes",
            fix=_AGAIN,
        )


# Maps a file in another way than this module does: path → its tensors by name.
Mapper = Callable[[Path], Mapping[str, torch.Tensor]]


class SafeFile:
    """An open safetensors file: checked header, tensors as views of the mapped bytes, or copies.

    Args:
        path: the file.
        source: who maps it; None for this module itself.
        mapped: False to read tensors into memory of their own. A mapped file that is cut short kills whoever touches what
            is no longer there; a tool that reads everything once does not need to take that risk.

    Attributes:
        path: the file.
        entries: what it holds, by tensor name.
        metadata: its `__metadata__`.
    """

    def __init__(self, path: str | os.PathLike[str], source: Mapper | None = None, mapped: bool = True):
        self.path = Path(path)
        self._source = source
        self._maps = mapped
        self.entries, self.metadata, stat = _look(self.path)
        self._size = stat.st_size
        self._stamp = _stamp(stat)
        # The header was checked: tensors fill the file from here to its end.
        self._data = self._size - max((entry.stop for entry in self.entries.values()), default=0)
        self._mapped: Any = None
        self._alive: weakref.WeakValueDictionary[str, np.ndarray[Any, Any]] = weakref.WeakValueDictionary()

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor on the CPU. Do not write into it.

        A view of the mapped file, which takes no memory until it is read; or a copy, see `mapped`.

        Raises:
            ChangedError: the file is another one than when it was opened.
            InputError: it cannot be read any more.
        """
        entry = self.entries[name]
        dtype = DTYPES[entry.dtype][0]
        if entry.nbytes == 0:
            return torch.empty(entry.shape, dtype=dtype)
        if not self._maps:
            return self._copy(name)
        if self._mapped is None:
            with self._opened(name):
                self._mapped = self._map()
        if self._source is not None:
            tensor: torch.Tensor = self._mapped[name]
            return tensor
        # safetensors' get_tensor would touch the first page of each tensor, and with what the system reads ahead then
        # the whole file: 30 s for the codes of LTX-2.3 from a disk, when nobody has asked for a single value.
        part = self._mapped[self._data + entry.start : self._data + entry.stop]
        return torch.empty(0, dtype=dtype).set_(part, 0, entry.shape)  # type: ignore[call-overload]

    def _map(self) -> Any:
        if self._source is not None:
            return self._source(self.path)
        try:
            return torch.UntypedStorage.from_file(str(self.path), False, self._size)
        except RuntimeError as error:
            raise FormatError(
                "the file cannot be mapped",
                file=self.path,
                expected="a whole safetensors file on a disk that can be mapped",
                found=error,
                fix=_AGAIN,
            ) from error

    def _copy(self, name: str) -> torch.Tensor:
        entry = self.entries[name]
        buffer = self._alive.get(name)  # as long as somebody holds it, it is not read again
        if buffer is None:
            buffer = np.empty(entry.nbytes, dtype=np.uint8)
            with self._opened(name) as file:
                file.seek(self._data + entry.start)
                self._fill(file, buffer.data, name)
            self._alive[name] = buffer
        return torch.from_numpy(buffer).view(DTYPES[entry.dtype][0]).reshape(entry.shape)

    def rows(self, name: str, numbers: Sequence[int], count: int) -> torch.Tensor:
        """Some rows of a tensor, read into memory of their own: for the little that is wanted of a file at once.

        Touching the mapping instead would bring what lies around each row into memory: the system reads ahead by as much
        as megabytes, which at full size comes to the whole file.

        Args:
            numbers: the rows, of
            count: equal parts of the tensor's bytes.

        Returns:
            `[len(numbers), values a row]` of the tensor's dtype.

        Raises:
            ChangedError: the file is another one than when it was opened.
            InputError: it cannot be read any more.
        """
        entry = self.entries[name]
        size = entry.nbytes // count
        data = bytearray(size * len(numbers))
        view = memoryview(data)
        with self._opened(name) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for i, number in enumerate(numbers):
                file.seek(self._data + entry.start + number * size)
                self._fill(file, view[i * size : (i + 1) * size], name)
        return torch.frombuffer(data, dtype=DTYPES[entry.dtype][0]).reshape(len(numbers), -1)

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[io.FileIO]:
        """The file, if it is still the one that was opened."""
        try:
            with open_regular(self.path) as file:
                now = os.fstat(file.fileno())
                if _stamp(now) != self._stamp:
                    raise self._changed(name, f"{now.st_size} bytes, changed at {_time(now.st_mtime)}")
                yield file
        except OSError as error:
            raise InputError(
                "the file cannot be read",
                file=self.path,
                tensor=name,
                expected="a file that stays where it was when it was opened",
                found=error.strerror or error,
                fix="check the disk, and start again",
            ) from error

    def _fill(self, file: io.FileIO, view: memoryview, name: str) -> None:
        done = 0
        while done < len(view):
            count = file.readinto(view[done:])
            if not count:
                raise self._changed(name, f"{os.fstat(file.fileno()).st_size} bytes")
            done += count

    def _changed(self, name: str, found: str) -> ChangedError:
        return ChangedError(
            "the file was changed while it was in use",
            file=self.path,
            tensor=name,
            expected=f"{self._size} bytes, as when it was opened",
            found=found,
            fix="let whatever writes it finish (a download, a sync), then start again",
        )


def _stamp(stat: os.stat_result) -> tuple[int, int]:
    # No inode: some network drives give a file another at each opening.
    return stat.st_size, stat.st_mtime_ns


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
