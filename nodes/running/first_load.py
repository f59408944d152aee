"""A model's first way to the card: all of its weights at once from the files, where there is room for all of them.

Left to itself, ComfyUI's dynamic VRAM brings each layer when the first step comes to it, by way of pinned memory: pin, wait,
read, wait. A packed model has two and a half times as many layers a gigabyte as one in BF16, and each of them waits. Here
some threads read while this one makes room, and nothing is pinned: what leaves the card later is pinned when it comes back.

The loader's input `load_at_once` turns it off; so does HLWQ_LOAD_AT_ONCE=0, in an emergency.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from ...hlwq_core import switches
from ...hlwq_core.errors import InputError
from .. import compat
from . import choices

SWITCH = "HLWQ_LOAD_AT_ONCE"
READERS = 4
COMPARED = 3
# Of a tensor, the ends of each so many bytes are compared: what is read in one piece is twice as long, and a text encoder's
# embeddings are 2 GB, which take seconds to come back.
SPAN, END = 16 << 20, 64 << 10

_log = logging.getLogger("hlwq")
# Whether what a card got was what the files hold; it is looked at once.
_proven: dict[torch.device, bool] = {}


def load(patcher: Any, device: torch.device) -> None:
    """Bring what is still in the files to `device`, if there is room for all of it.

    Args:
        patcher: of dynamic VRAM, loaded.
        device: where to; only CUDA devices are read to like this.

    Raises:
        InputError: a file could not be read; the layers are then as they were before.
    """
    wanted = choices.of(patcher.model).load_at_once and not switches.off(SWITCH)
    if device.type != "cuda" or not wanted or not _proven.get(device, True):
        return
    if not compat.works(compat.Feature.FIRST_LOAD):
        return
    modules = [named for named in patcher.model.named_modules() if compat.awaits_first_load(named[1])]
    nbytes = sum(compat.allocation_bytes(module) for _, module in modules)
    if not modules or not compat.room_on_card(nbytes, patcher.model, device):
        return
    begun = time.perf_counter()
    try:
        readers = [compat.Reader(device) for _ in range(READERS)]
    except (RuntimeError, TypeError) as error:  # no pinned memory to be had, or another aimdo: core has its own ways
        _log.warning("HLWQ: weights are not read to the card at once: %s", error)
        return
    # A new thread has no context of the driver before it asks the runtime for something.
    pool = ThreadPoolExecutor(READERS, "hlwq-read", torch.cuda.synchronize, (device,))
    arrivals: list[compat.Arrival] = []
    try:
        reads = _read_all(modules, arrivals, readers, pool, device)
        for done in reads:
            done.result()
        for reader in readers:
            reader.stream.synchronize()
        if arrivals and device not in _proven:
            _proven[device] = _as_in_the_files(arrivals)
        if not _proven.get(device, True):
            _log.warning(
                "HLWQ: what was read to %s is not what the files hold; ComfyUI loads layer by layer now", device
            )
            return
        for arrival in arrivals:
            arrival.settle()
    finally:
        pool.shutdown(cancel_futures=True)
        for reader in readers:
            reader.stream.synchronize()  # before its memory goes, and the layers' may
        for arrival in arrivals:
            arrival.release()
    seconds = time.perf_counter() - begun
    _log.info("HLWQ: %d layers, %.1f GB, read to the card in %.1f s", len(arrivals), nbytes / 1e9, seconds)


def _read_all(
    modules: list[tuple[str, torch.nn.Module]],
    arrivals: list[compat.Arrival],
    readers: list[compat.Reader],
    pool: ThreadPoolExecutor,
    device: torch.device,
) -> list[Future]:
    """Make room for one layer after the other, in `arrivals`, and have each read; ends early where there is no more room."""
    idle: queue.SimpleQueue[compat.Reader] = queue.SimpleQueue()
    for reader in readers:
        idle.put(reader)

    def read(arrival: compat.Arrival) -> None:
        reader = idle.get()
        try:
            for part, memory in arrival.reads:
                reader.read(part, memory)
        except RuntimeError as error:
            raise InputError(
                "weights could not be read from the checkpoint's files to the card",
                tensor=arrival.name,
                expected=f"{arrival.nbytes} bytes",
                found=error,
                fix="check the disk and that the files are whole (HLWQ Verify), then load the checkpoint again",
            ) from error
        finally:
            idle.put(reader)

    reads = []
    for name, module in modules:
        compat.model_management.throw_exception_if_processing_interrupted()
        arrival = compat.arrive(name, module, device)
        if arrival is None:
            break  # somebody took the room; core brings the rest as it is used
        arrivals.append(arrival)
        reads.append(pool.submit(read, arrival))
    return reads


def _as_in_the_files(arrivals: list[compat.Arrival]) -> bool:
    """Compare some layers on the card with their files, bytes of each piece that was read; the layer with the most is among them."""
    some = arrivals[:: max(1, len(arrivals) // COMPARED)]
    largest = max(arrivals, key=lambda arrival: arrival.nbytes)
    pairs = [pair for arrival in (*some, largest) for pair in arrival.reads]
    return all(map(_same_at_the_ends, *zip(*pairs, strict=True)))


def _same_at_the_ends(part: torch.Tensor, memory: torch.Tensor) -> bool:
    here, there = (tensor.reshape(-1).view(torch.uint8) for tensor in (part, memory))
    return all(torch.equal(there[ends].cpu(), here[ends]) for ends in ends_of(here.numel()))


def ends_of(nbytes: int) -> Iterator[slice]:
    """Begin and end of each span of so many bytes."""
    for start in range(0, nbytes, SPAN):
        stop = min(start + SPAN, nbytes)
        yield slice(start, min(start + END, stop))
        yield slice(max(start, stop - END), stop)
