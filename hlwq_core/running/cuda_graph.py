"""A function of tensors, recorded as a CUDA graph and replayed: one launch instead of thousands, where the host is the slower.

The recording reads its inputs from memory of its own, which every replay fills first, and finds weights where they were as it
was made: whoever replays makes sure that they still are there. Works with torch's own allocator and with cudaMallocAsync,
which ComfyUI uses and torch.compile's graphs do not know.

One is made at a time: torch's switch that makes waiting an error is the process's. Everything else is the thread's.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch

from ..backends import proof
from . import scratch

# The same kernels on the same numbers: what differs by more is no rounding.
TOLERANCE = 1e-2

_log = logging.getLogger("hlwq")


class _OfThread(threading.local):
    recording = False


_own = _OfThread()
_one_at_a_time = threading.Lock()


class Unrecordable(Exception):
    """An argument that a recording cannot be given anew at each replay; the message says which."""


def is_recording() -> bool:
    """Whether what this thread runs now is, or is about to be, recorded: it must touch no memory that somebody else may take."""
    return _own.recording


def flatten(value: Any, leaves: list[torch.Tensor]) -> Hashable:
    """Take a nested argument apart.

    Args:
        value: tensors, numbers, strings and None, in lists, tuples, dicts and objects with `__slots__`.
        leaves: its tensors are appended here, each once.

    Returns:
        Its structure: what is equal for two values has tensors of the same shapes, strides and dtypes at the same places.

    Raises:
        Unrecordable: something else is in it.
    """
    if isinstance(value, torch.Tensor):
        if type(value) is not torch.Tensor:
            raise Unrecordable(f"a {type(value).__name__}")
        place = next((i for i, leaf in enumerate(leaves) if leaf is value), len(leaves))
        if place == len(leaves):
            leaves.append(value)
        return "tensor", place, value.shape, value.stride(), value.dtype, value.device
    if value is None or isinstance(value, (bool, int, float, str)):
        return "value", type(value), value
    if type(value) in (list, tuple):
        return type(value), tuple(flatten(item, leaves) for item in value)
    if type(value) is dict:
        return dict, tuple(value), tuple(flatten(item, leaves) for item in value.values())
    slots = getattr(type(value), "__slots__", None)
    if not slots or not all(hasattr(value, name) for name in slots):
        raise Unrecordable(f"a {type(value).__name__}")
    return type(value), tuple(slots), tuple(flatten(getattr(value, name), leaves) for name in slots)


def rebuild(structure: Any, leaves: list[torch.Tensor]) -> Any:
    """A value of this structure, of these tensors: the inverse of `flatten`."""
    kind, *rest = structure
    if kind == "tensor":
        return leaves[rest[0]]
    if kind == "value":
        return rest[1]
    items = [rebuild(item, leaves) for item in rest[-1]]
    if kind in (list, tuple):
        return kind(items)
    if kind is dict:
        return dict(zip(rest[0], items, strict=True))
    made = object.__new__(kind)
    for name, item in zip(rest[0], items, strict=True):
        setattr(made, name, item)
    return made


def _distinct(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor without the repetitions of an expanded one, which cannot be written to."""
    return tensor[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride())]


def _like(tensor: torch.Tensor) -> torch.Tensor:
    """Memory for a tensor of the same shape and strides: compiled code asks for the same strides."""
    base = _distinct(tensor)
    return base.new_empty_strided(base.shape, base.stride()).expand(tensor.shape)


@functools.lru_cache(maxsize=16)
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: libraries keep memory for each stream that they have seen."""
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def _while_recording() -> Iterator[None]:
    _own.recording = True
    try:
        with scratch.held_by_recording():
            yield
    finally:
        _own.recording = False


@contextlib.contextmanager
def _no_waiting() -> Iterator[None]:
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


class Recording:
    """One function at one structure of its arguments.

    Args:
        function: takes the arguments, returns a list of tensors. It may write to its arguments.
        structure, leaves: arguments, by `flatten`, all on one device.
        recorded: called when all is recorded, before the first replay.

    Attributes:
        device: where it runs.
        results: of these arguments.
        pays_after: replays that win back the time that it took to make, as far as this once tells; infinity if none do.

    Raises:
        RuntimeError: it does something that cannot be recorded, or the recording gives other results. Nothing is kept then.
    """

    def __init__(
        self,
        function: Callable[..., list[torch.Tensor]],
        structure: Any,
        leaves: list[torch.Tensor],
        recorded: Callable[[], None] = lambda: None,
    ):
        self.device = leaves[0].device
        self._stream = _stream(self.device)
        self._inputs = [_like(leaf) for leaf in leaves]
        self._graph = torch.cuda.CUDAGraph()

        def run() -> list[torch.Tensor]:
            return function(*rebuild(structure, self._inputs))

        with _one_at_a_time:
            self._make(run, leaves, recorded)

    def _make(
        self, run: Callable[[], list[torch.Tensor]], leaves: list[torch.Tensor], recorded: Callable[[], None]
    ) -> None:
        begun = self._now()
        self._fill(leaves)
        self._outputs = self._rehearse(run)
        self.results = self._copies()
        rehearsed = self._now()
        try:
            self._record(run)
            # The layers' scratch goes back after sampling, or is replaced by a larger one: not while this may be replayed.
            self._held = scratch.buffers(self.device)
            captured = self._now()
            _log.debug("HLWQ: a rehearsal of %.2f s, recorded in %.2f s", rehearsed - begun, captured - rehearsed)
            recorded()
            begun_replay = self._now()
            replayed = self.replay(leaves)
            ended = self._now()
            saved = (rehearsed - begun) - (ended - begun_replay)
            self.pays_after = (ended - rehearsed) / saved if saved > 0 else math.inf
            for expected, found in zip(self.results, replayed, strict=True):
                difference = proof.relative_difference(found.float(), expected.float())
                if not difference <= TOLERANCE:
                    raise RuntimeError(f"the recording differs by {difference:.3g} from what was recorded")
        except BaseException:
            self.close()
            raise

    def _now(self) -> float:
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _fill(self, leaves: list[torch.Tensor]) -> None:
        for own, leaf in zip(self._inputs, leaves, strict=True):
            _distinct(own).copy_(_distinct(leaf))

    def _copies(self) -> list[torch.Tensor]:
        return [output.clone() for output in self._outputs]

    def _rehearse(self, run: Callable[[], list[torch.Tensor]]) -> list[torch.Tensor]:
        """Run as the recording will: libraries and compiled code set up what they need for this stream and these inputs. What
        waits for the device raises here: while it is recorded, cudaMallocAsync would end the process over it."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream), _no_waiting(), _while_recording():
            outputs = [output.clone() for output in run()]
        current.wait_stream(self._stream)
        return outputs

    def _record(self, run: Callable[[], list[torch.Tensor]]) -> None:
        pool = torch.cuda.graph_pool_handle()
        with torch.cuda.stream(self._stream), _while_recording():
            # Other threads load files and make previews meanwhile: only what this one does counts.
            self._graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                self._record_results(run)
            except BaseException as error:
                # What was allocated must go while the graph that it belongs to is there.
                traceback.clear_frames(error.__traceback__)
                with contextlib.suppress(RuntimeError):
                    self._graph.capture_end()
                raise
            try:
                self._graph.capture_end()
            except RuntimeError:
                # torch's allocator would wait for the end of this recording for ever.
                with contextlib.suppress(RuntimeError):
                    torch._C._cuda_endAllocateToPool(self.device.index or 0, pool)
                raise

    def _record_results(self, run: Callable[[], list[torch.Tensor]]) -> None:
        for output, result in zip(self._outputs, run(), strict=True):
            output.copy_(result)

    def replay(self, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
        """The function's results for these arguments.

        Raises:
            RuntimeError: the driver refused, for want of memory say; nothing ran then.
        """
        self._fill(leaves)
        self._graph.replay()
        return self._copies()

    def __del__(self) -> None:
        # A model went with its recordings: what the driver keeps of their memory is of no use to anybody.
        if not getattr(self, "_outputs", None) or sys.is_finalizing():
            return
        # Whose garbage it is found in may be recording: to wait for the card would spoil that.
        if not _one_at_a_time.locked() and not scratch.is_captured():
            with contextlib.suppress(Exception):
                self.close()

    def close(self) -> None:
        """Give its memory back."""
        torch.cuda.synchronize(self.device)
        self._graph.reset()
        self._inputs, self._outputs, self._held = [], [], []
        if torch.cuda.get_allocator_backend() == "native":
            torch.cuda.empty_cache()  # it would keep the memory for another recording, and nothing else
        else:
            _trim(self.device)


def _trim(device: torch.device) -> None:
    """Give the memory of graphs that are gone back to the system, which the driver keeps for the next one."""
    try:
        from cuda.bindings import driver

        driver.cuDeviceGraphMemTrim(driver.CUdevice(device.index or 0))
    except (ImportError, AttributeError) as error:  # a driver or bindings without it: the memory stays with the process
        _log.debug("HLWQ: graphs' memory is not given back: %s", error)
