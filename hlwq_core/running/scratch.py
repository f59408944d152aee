"""The buffers that layers are decoded into: a thread's layers run one after another, so the next may overwrite the last.

Each thread has its own: ComfyUI's MultiGPU CFG Split runs a model in several threads at once, and two of them may be on one device.
They go with their thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import torch

from ..backends.eight_bit import DTYPES, EightBit


class _OfThread(threading.local):
    """What a thread has.

    Attributes:
        buffers: one a device and use, as bytes.
        views: of them by shape and dtype: making one costs the host more than launching a decode.
        held_by_recording: whether it makes a recording that holds the buffers (cuda_graph.py).
    """

    def __init__(self) -> None:
        self.buffers: dict[tuple[torch.device, str], torch.Tensor] = {}
        self.views: dict[tuple[torch.device, str, torch.dtype, int, int], torch.Tensor] = {}
        self.held_by_recording = False


_own = _OfThread()
# Around what stays allocated after a step; whoever lays out a step's memory anew (ComfyUI's compiler) hangs in here.
lasting: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext


@contextlib.contextmanager
def held_by_recording() -> Iterator[None]:
    """While this thread makes a recording that holds its buffers."""
    _own.held_by_recording = True
    try:
        yield
    finally:
        _own.held_by_recording = False


def is_captured() -> bool:
    """Whether somebody else records what runs now, as ComfyUI does with some models' blocks: a replay would read and write
    memory that may be another's by then. What is allocated meanwhile belongs to that recording."""
    return not _own.held_by_recording and torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def view(rows: int, columns: int, dtype: torch.dtype, device: torch.device, use: str = "weights") -> torch.Tensor:
    """A `[rows, columns]` view of this thread's buffer on the device, valid until the next call; grown to the largest layer. Memory of its own
    where somebody else records.

    Args:
        use: `weights`, or `scales` for the small buffer of 8-bit weights' scales.
    """
    if is_captured():
        return torch.empty((rows, columns), dtype=dtype, device=device)
    key = (device, use, dtype, rows, columns)
    found = _own.views.get(key)
    if found is not None:
        return found
    size = rows * columns * dtype.itemsize
    buffer = _own.buffers.get((device, use))
    # A plain tensor even when sampling runs in inference mode: later calls may come from outside of it.
    with torch.inference_mode(False), lasting():
        if buffer is None or buffer.numel() < size:
            del buffer
            _release(device, use)
            buffer = _own.buffers[device, use] = torch.empty(size, dtype=torch.uint8, device=device)
        found = _own.views[key] = buffer[:size].view(dtype).view(rows, columns)
    return found


def eight_bit(rows: int, padded: int, kind: str, device: torch.device) -> EightBit:
    """A weight's place in 8 bits, valid until the next layer is decoded."""
    return EightBit(view(rows, padded, DTYPES[kind], device), view(rows, 1, torch.float32, device, "scales"))


def _release(device: torch.device | None, use: str | None) -> None:
    def meant(key: tuple) -> bool:
        return device in (None, key[0]) and use in (None, key[1])

    for key in filter(meant, list(_own.views)):
        del _own.views[key]
    for buffer in filter(meant, list(_own.buffers)):
        del _own.buffers[buffer]


def release(device: torch.device | None = None) -> None:
    """Give this thread's buffers of a device (or of all) back to torch's allocator."""
    _release(device, None)


def nbytes(device: torch.device) -> int:
    """Size of this thread's buffers on the device."""
    return sum(buffer.numel() for buffer in buffers(device))


def buffers(device: torch.device) -> list[torch.Tensor]:
    """This thread's buffers on the device, for whoever needs them to stay where they are."""
    return [buffer for (owner, _), buffer in _own.buffers.items() if owner == device]
