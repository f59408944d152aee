"""What decodes packed weights, exactly and to 8 bits: a module a backend, each with its `BACKEND` (see contract.py).

`eager` is the definition that every other one must agree with; `eight_bit` is the definition of fast mode. A new backend is a
file here and its name in `_TABLE`.
"""

from __future__ import annotations

import functools
import importlib
import logging

import torch

from .. import switches
from ..errors import InputError
from ..format.packed import PackedLayer
from .contract import Backend, Fast
from .eight_bit import KINDS

# In order of preference; the last one is the definition, and runs everywhere.
_TABLE = ("cuda", "triton", "eager")
SWITCH = "HLWQ_BACKEND"

_log = logging.getLogger("hlwq")


def names() -> tuple[str, ...]:
    """The backends that exist, best first."""
    return _TABLE


def get(name: str) -> Backend:
    """A backend by its name.

    Raises:
        InputError: no backend has this name.
    """
    if name not in _TABLE:
        raise InputError(
            "unknown HLWQ backend",
            expected=", ".join(("auto", *_TABLE)),
            found=name,
            fix=f"choose one of these in the loader, or in the environment variable {SWITCH}",
        )
    return importlib.import_module(f".{name}", __name__).BACKEND


def unavailable_reasons(device: torch.device | str) -> dict[str, str | None]:
    """For each backend why it cannot run on `device`, or None if it can."""
    return {name: get(name).unavailable_reason(device) for name in _TABLE}


def choose(device: torch.device | str, forced: str | None = None) -> Backend:
    """The best backend for a device.

    Args:
        device: where weights are decoded.
        forced: a backend's name; None or "auto" leaves it to `HLWQ_BACKEND`, then to what is available.

    Raises:
        InputError: the forced backend is unknown or cannot run on this device.
    """
    if not isinstance(device, torch.device):
        device = torch.device(device)
    if forced in (None, "", "auto"):
        forced = switches.value(SWITCH) or None
    return _choose(device, None if forced == "auto" else forced)


@functools.lru_cache(maxsize=64)
def _choose(device: torch.device, forced: str | None) -> Backend:
    if forced is not None:
        backend = get(forced)
        reason = backend.unavailable_reason(device)
        if reason is not None:
            raise InputError(
                f"the HLWQ backend {forced} cannot run on {device}",
                expected="a backend that runs there",
                found=reason,
                fix=f"choose auto or eager in the loader, or unset {SWITCH}",
            )
        _log.info("HLWQ: decoding on %s with the backend %s (forced)", device, forced)
        return backend
    backend = next(backend for backend in map(get, _TABLE) if backend.unavailable_reason(device) is None)
    _log.info("HLWQ: decoding on %s with the backend %s", device, backend.name)
    return backend


def decode(packed: PackedLayer, dtype: torch.dtype, backend: str | None = None) -> torch.Tensor:
    """Decode a weight where it lies, with the backend that `choose` gives: `[out_features, in_features]` of `dtype`."""
    return choose(packed.codes.device, backend).decode(packed, dtype)


def fast_unavailable_reason(device: torch.device | str) -> str | None:
    """Why fast mode cannot run on `device`, as far as its capabilities tell; None if it should. Builds nothing."""
    device = torch.device(device)
    reason = None
    for kind in KINDS:
        for fast in _fast(kind):
            reason = fast.constraints.refuses(device)
            if reason is None:
                return None
    return reason


@functools.lru_cache(maxsize=16)
def choose_fast(device: torch.device) -> tuple[str | None, str | None]:
    """The kind of 8 bits for a device, or None and why. Builds what it needs and proves it, once."""
    refusal = fast_unavailable_reason(device)
    if refusal is not None:
        return None, refusal
    reasons = []
    for kind in KINDS:
        for fast in _fast(kind):
            if fast.constraints.refuses(device) is not None:
                continue
            try:
                fast.prove(device)
            except (OSError, RuntimeError) as error:
                reasons.append(f"{kind}: {str(error).splitlines()[0]}")
                continue
            return kind, None
    return None, "; ".join(reasons)


def fast_kind(device: torch.device) -> str | None:
    """The kind of 8 bits that fast mode would take on a device, if it proves right there; nothing is built or proven."""
    if fast_unavailable_reason(device) is not None:
        return None
    kinds = (kind for kind in KINDS for fast in _fast(kind) if fast.constraints.refuses(device) is None)
    return next(kinds, None)


def _fast(kind: str) -> list[Fast]:
    """Fast mode of this kind in the backends that gain by it: the definition does not."""
    return [backend.fast[kind] for backend in map(get, _TABLE[:-1]) if kind in backend.fast]


@functools.lru_cache(maxsize=16)
def fast_mode(device: torch.device, kind: str) -> Fast:
    """What multiplies in this kind of 8 bits on `device`: a backend's, or the definition where none is to be had."""
    definition = get(_TABLE[-1]).fast[kind]
    return next((fast for fast in _fast(kind) if fast.constraints.refuses(device) is None), definition)
