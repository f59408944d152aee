"""Arguments of a call as JSON and a list of tensors, for another process: no code is in it, nothing is unpickled."""

from __future__ import annotations

from typing import Any

import torch

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}


class Unsendable(Exception):
    """A value that no message can carry; the message says where it is and what."""


def pack(value: Any, tensors: list[torch.Tensor], where: str = "value") -> Any:
    """A value as JSON.

    Args:
        value: tensors, numbers, strings and None, in lists, tuples and dicts with keys of these.
        tensors: its tensors are appended here, each once.
        where: its name, for the error.

    Raises:
        Unsendable: something else is in it.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        if type(value) is not torch.Tensor:
            raise Unsendable(f"{where} is a {type(value).__name__}")
        place = next((i for i, tensor in enumerate(tensors) if tensor is value), len(tensors))
        if place == len(tensors):
            tensors.append(value)
        return {"tensor": place}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [pack(item, tensors, f"{where}[{i}]") for i, item in enumerate(value)]}
    if isinstance(value, dict):
        return {"dict": [[_key(key, where), pack(item, tensors, f"{where}[{key!r}]")] for key, item in value.items()]}
    raise Unsendable(f"{where} is a {type(value).__module__}.{type(value).__name__}")


def _key(key: Any, where: str) -> Any:
    if not isinstance(key, (bool, int, float, str)):
        raise Unsendable(f"{where} has {key!r} for a key")
    return key


def unpack(packed: Any, tensors: list[torch.Tensor]) -> Any:
    """The inverse of `pack`."""
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dtype":
        return DTYPES[content]
    if kind == "dict":
        return {key: unpack(item, tensors) for key, item in content}
    items = [unpack(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)


def describe(tensors: list[torch.Tensor], device: torch.device) -> list[list[Any]]:
    """Shape and dtype of each as JSON, and whether it is on `device`."""
    return [[list(t.shape), str(t.dtype).removeprefix("torch."), t.device == device] for t in tensors]


def empty(described: list[list[Any]], device: torch.device) -> list[torch.Tensor]:
    """Memory on `device` for tensors that `describe` told of."""
    return [torch.empty(shape, dtype=DTYPES[dtype], device=device) for shape, dtype, _ in described]


def where_they_were(tensors: list[torch.Tensor], described: list[list[Any]]) -> list[torch.Tensor]:
    """Those that were in memory there, in memory here."""
    return [t if there else t.cpu() for t, (_, _, there) in zip(tensors, described, strict=True)]
