"""The dense model that is quantized, compared with, or repaired from: a safetensors file, or a folder of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import torch

from ..errors import FormatError, IncompleteError, InputError, UnsupportedError
from ..format import variants
from ..format.bounded import is_file, read_object, unreadable
from ..format.safefile import Entry, SafeFile
from .find import files_of, is_folder, others_in


@dataclass
class DenseModel:
    """An index of a dense model; tensors are read when they are asked for, into memory of their own.

    Attributes:
        path: what the user named.
        files: the safetensors files.
        entries: tensor name → (file, header entry), in the files' order.
        metadata: of all files; the first to have a key wins.
    """

    path: Path
    files: list[SafeFile]
    entries: dict[str, tuple[SafeFile, Entry]]
    metadata: dict[str, str]

    def tensor(self, name: str) -> torch.Tensor:
        return self.entries[name][0].tensor(name)

    def described(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """Name, dtype and shape of every tensor, as recipes want them."""
        for name, (_, entry) in self.entries.items():
            yield name, entry.dtype, entry.shape


def open_dense(path: str | os.PathLike[str]) -> DenseModel:
    """Open a dense model; headers are read, no weight is.

    Args:
        path: a `.safetensors` file, or a folder of them (with or without a `….safetensors.index.json`).

    Raises:
        InputError: nothing there, or two files that hold the same tensor.
        IncompleteError: a shard that the index names is missing.
        FormatError: a file is no whole safetensors file.
        UnsupportedError: already HLWQ, or quantized in another way.
    """
    path = Path(path)
    files = [SafeFile(file, mapped=False) for file in _files(path)]
    entries: dict[str, tuple[SafeFile, Entry]] = {}
    metadata: dict[str, str] = {}
    for file in files:
        for name in file:
            if name in entries:
                raise InputError(
                    "two files hold the same tensor: this folder is not one model",
                    file=file.path,
                    tensor=name,
                    found=f"also in {entries[name][0].path}",
                    fix="name the file that you mean",
                )
            _refuse(file.path, name)
            entries[name] = (file, file.entries[name])
        metadata = file.metadata | metadata
    return DenseModel(path, files, entries, metadata)


def _refuse(file: Path, name: str) -> None:
    if variants.holds_codes([name]):
        raise UnsupportedError(
            "this model is quantized already",
            file=file,
            tensor=name,
            expected="dense weights (BF16, F16 or F32)",
            fix="use the original checkpoint: quantizing twice adds the errors",
        )
    if name.endswith((".scale_weight", ".weight_scale", ".weight_scale_2", "scaled_fp8", ".comfy_quant")):
        raise UnsupportedError(
            "this model is a scaled FP8, FP4 or INT8 one: its weights mean nothing without their scales",
            file=file,
            tensor=name,
            expected="dense weights (BF16, F16 or F32)",
            fix="use the BF16 version of the model",
        )


def _files(path: Path) -> list[Path]:
    if is_file(path):
        return [path]
    if not is_folder(path):
        raise InputError("no such file or folder", file=path, fix="check the path of the model")
    try:
        indexes = sorted(path.glob("*.safetensors.index.json"))
    except OSError as error:
        raise unreadable(path, error, "a folder that may be read") from error
    if len(indexes) > 1:
        raise InputError(
            "the folder has several indexes: it holds several models",
            file=path,
            found=len(indexes),
            fix="move each model, with its index, into a folder of its own",
        )
    if indexes:
        return _indexed(indexes[0])
    files = files_of(path)
    if not files:
        raise InputError(
            "there are no safetensors files in this folder",
            file=path,
            expected="*.safetensors",
            found=others_in(path),
            fix="name the model's folder or file; other formats are converted first",
        )
    return files


def _indexed(index: Path) -> list[Path]:
    names = read_object(index, "the index of the shards").get("weight_map")
    shards = sorted(set(map(str, names.values()))) if isinstance(names, dict) else []
    unsafe = [name for name in shards if not _is_beside(name)]
    if not shards or unsafe:
        raise FormatError(
            "the index names files outside its folder" if unsafe else "the index of the shards names no files",
            file=index,
            expected='"weight_map", tensor names → names of files in this folder',
            found=ascii(unsafe[0])[:200] if unsafe else type(names).__name__,
            fix="download the index again",
        )
    missing = [name for name in shards if not is_file(index.parent / name)]
    if missing:
        raise IncompleteError(
            f"{len(missing)} of {len(shards)} shards are missing",
            file=index,
            expected=missing[0],
            fix="download the missing shards",
        )
    return [index.parent / name for name in shards]


def _is_beside(name: str) -> bool:
    """Whether a name of an index stays in the index's folder, on any system."""
    paths = (PurePosixPath(name), PureWindowsPath(name))
    return name.isprintable() and not any(p.is_absolute() or p.drive or ".." in p.parts for p in paths)
