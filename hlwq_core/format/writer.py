"""Writing safetensors files tensor by tensor: in the memory of one tensor, whole or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

from ..errors import FormatError
from .places import write_beside, write_error
from .safefile import DTYPES, NAMES

Producer = Callable[[], torch.Tensor]


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Iterable[tuple[str, torch.dtype, tuple[int, ...], Producer]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a file whose tensors are made one at a time.

    The file grows beside its target, is flushed to the disk and then renamed: the target is whole or untouched.

    Args:
        path: the target; an existing file is replaced.
        tensors: name, dtype, shape, and a function that makes the tensor when its turn has come.
        metadata: strings for `__metadata__`; none is written when it is None.

    Raises:
        DiskFullError: as its name says.
        InputError: the folder cannot be written.
        FormatError: a producer's tensor is not what was announced.
    """
    path = Path(path)
    entries = list(tensors)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    with write_beside(path) as file:
        file.write(_header(entries, metadata))
        for name, dtype, shape, produce in entries:
            tensor = produce()
            if tensor.dtype != dtype or tuple(tensor.shape) != tuple(shape):
                raise FormatError(
                    "a tensor is not what was announced",
                    file=path,
                    tensor=name,
                    expected=f"{dtype} {list(shape)}",
                    found=f"{tensor.dtype} {list(tensor.shape)}",
                    fix="this is a bug of the pack: please report it with the command",
                )
            if tensor.numel():
                flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                file.write(flat.numpy().data)


def _header(
    entries: list[tuple[str, torch.dtype, tuple[int, ...], Producer]], metadata: Mapping[str, str] | None
) -> bytes:
    header: dict[str, object] = {}
    if metadata is not None:
        header["__metadata__"] = dict(metadata)
    position = 0
    for name, dtype, shape, _ in entries:
        if name in header:
            raise FormatError(
                "two tensors have one name",
                tensor=name,
                fix="this is a bug of the pack: please report it with the command",
            )
        if dtype not in NAMES:
            raise FormatError(
                "a dtype that safetensors files do not hold here",
                tensor=name,
                found=dtype,
                fix="store this tensor in another dtype",
            )
        nbytes = math.prod(shape) * DTYPES[NAMES[dtype]][1]
        header[name] = {
            "dtype": NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [position, position + nbytes],
        }
        position += nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw
