"""A model's first way to the card: all of its weights at once from the files, where there is room for all of them.

Left to itself, ComfyUI's dynamic VRAM brings each layer when the first step comes to it, by way of pinned memory: pin, wait,
read, wait. A packed model has two and a half times as many layers a gigabyte as one in BF16, and each of them waits. Here one
thread reads while this one makes room, and nothing is pinned: what has to leave the card later is pinned when it comes back.
"""

from __future__ import annotations

import logging
import queue
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from ..hlwq_core.errors import InputError
from . import compat

READERS = 4

_log = logging.getLogger("hlwq")


def load(patcher: Any, device: torch.device) -> None:
    """Bring what is still in the files to `device`, all of it or nothing.

    Args:
        patcher: of dynamic VRAM, loaded.

    Raises:
        InputError: a file could not be read; the layers are then as they were before.
    """
    modules = [named for named in patcher.model.named_modules() if compat.awaits_first_load(named[1])]
    nbytes = sum(compat.allocation_bytes(module) for _, module in modules)
    if device.type != "cuda" or not modules or not compat.room_on_card(nbytes, device):
        return
    begun = time.perf_counter()
    idle: queue.SimpleQueue[compat.Reader] = queue.SimpleQueue()
    readers = [compat.Reader(device) for _ in range(READERS)]
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
                expected=f"{sum(part.nbytes for part, _ in arrival.reads)} bytes",
                found=error,
                fix="check the disk and that the files are whole (HLWQ Verify), then load the checkpoint again",
            ) from error
        finally:
            idle.put(reader)

    # A new thread has no context of the driver before it asks the runtime for something.
    pool = ThreadPoolExecutor(READERS, "hlwq-read", torch.cuda.synchronize, (device,))
    arrivals: list[compat.Arrival] = []
    reads: list[Future] = []
    try:
        for name, module in modules:
            compat.model_management.throw_exception_if_processing_interrupted()
            arrival = compat.arrive(name, module, device)
            if arrival is None:
                break  # somebody took the room; core brings the rest as it is used
            arrivals.append(arrival)
            reads.append(pool.submit(read, arrival))
        for done in reads:
            done.result()
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
