"""The dense model that is quantized, compared with, or repaired from: a safetensors file, or a folder of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import FormatError, IncompleteError, InputError, UnsupportedError
from ..format import variants
from ..format.safefile import Entry, SafeFile


@dataclass
class DenseModel:
    """An index of a dense model; tensors are views of the mapped files.

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
    files = [SafeFile(file) for file in _files(path)]
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
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError("no such file or folder", file=path, fix="check the path of the model")
    indexes = sorted(path.glob("*.safetensors.index.json"))
    if len(indexes) > 1:
        raise InputError(
            "the folder has several indexes: it holds several models",
            file=path,
            found=len(indexes),
            fix="move each model, with its index, into a folder of its own",
        )
    if indexes:
        return _indexed(indexes[0])
    files = sorted(
        f for f in path.rglob("*.safetensors") if not any(p.startswith(".") for p in f.relative_to(path).parts)
    )
    if not files:
        raise InputError(
            "there are no safetensors files in this folder", file=path, fix="name the model's folder or file"
        )
    return files


def _indexed(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        unsafe = [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(
            "the index of the shards cannot be understood",
            file=index,
            found=error,
            fix="download the index again; without it every safetensors file of the folder is read",
        ) from error
    if unsafe:
        raise FormatError(
            "the index names files outside its folder",
            file=index,
            found=unsafe[0],
            fix="download the index again: it names files of another folder",
        )
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise IncompleteError(
            f"{len(missing)} of {len(names)} shards are missing",
            file=index,
            expected=missing[0],
            fix="download the missing shards",
        )
    return [index.parent / name for name in names]
