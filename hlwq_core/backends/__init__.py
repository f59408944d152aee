"""Backends that decode packed weights. Each is a module with `NAME`, `unavailable_reason(device)`, `decode(...)` and `prepare(...)`.

`eager` is the reference that every other one must agree with. A new backend is a file here and a line in `_TABLE`.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
from types import ModuleType

import torch

from ..errors import InputError

# In order of preference.
_TABLE = ("cuda", "triton", "eager")
ENVIRONMENT_VARIABLE = "HLWQ_BACKEND"

_log = logging.getLogger(__name__)


def names() -> tuple[str, ...]:
    """The backends that exist, best first."""
    return _TABLE


def get(name: str) -> ModuleType:
    """The module of a backend.

    Raises:
        InputError: no backend has this name.
    """
    if name not in _TABLE:
        raise InputError(
            "unknown HLWQ backend",
            expected=", ".join(("auto", *_TABLE)),
            found=name,
            fix=f"choose one of these in the loader, or in the environment variable {ENVIRONMENT_VARIABLE}",
        )
    return importlib.import_module(f".{name}", __name__)


def unavailable_reasons(device: torch.device | str) -> dict[str, str | None]:
    """For each backend why it cannot run on `device`, or None if it can."""
    device = torch.device(device)
    return {name: get(name).unavailable_reason(device) for name in _TABLE}


def choose(device: torch.device | str, forced: str | None = None) -> ModuleType:
    """The best backend for a device.

    Args:
        device: where weights are decoded.
        forced: a backend's name; None or "auto" leaves it to `HLWQ_BACKEND`, then to what is available.

    Raises:
        InputError: the forced backend is unknown or cannot run on this device.
    """
    device = torch.device(device)
    if forced in (None, "", "auto"):
        forced = os.environ.get(ENVIRONMENT_VARIABLE) or None
    return _choose(device.type, device.index, None if forced == "auto" else forced)


@functools.lru_cache(maxsize=64)
def _choose(device_type: str, index: int | None, forced: str | None) -> ModuleType:
    device = torch.device(device_type, index) if index is not None else torch.device(device_type)
    if forced is not None:
        backend = get(forced)
        reason = backend.unavailable_reason(device)
        if reason is not None:
            raise InputError(
                f"the HLWQ backend {forced} cannot run on {device}",
                expected="a backend that runs there",
                found=reason,
                fix=f"choose auto or eager in the loader, or unset {ENVIRONMENT_VARIABLE}",
            )
        _log.info("HLWQ: decoding on %s with the backend %s (forced)", device, forced)
        return backend
    for name in _TABLE:
        backend = get(name)
        if backend.unavailable_reason(device) is None:
            _log.info("HLWQ: decoding on %s with the backend %s", device, name)
            return backend
    raise AssertionError("the eager backend runs everywhere")
