"""Ranks as threads of one process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed

DONE = SimpleNamespace(wait=lambda: None)


class Threads:
    """What ranks share; `group(rank)` is a rank's `exchange.Group`."""

    def __init__(self, ranks: int, timeout: float = 120.0):
        self.ranks = ranks
        self.barrier = threading.Barrier(ranks, timeout=timeout)
        self.slots: list[Any] = [None] * ranks

    def swap(self, rank: int, value: Any) -> list[Any]:
        self.slots[rank] = value
        self.barrier.wait()
        found = list(self.slots)
        self.barrier.wait()
        return found

    def group(self, rank: int) -> Group:
        return Group(self, rank)

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """`work(rank)` of every rank at once."""

        def guarded(rank: int) -> Any:
            try:
                return work(rank)
            except BaseException:
                self.barrier.abort()  # nobody waits for this one
                raise

        with ThreadPoolExecutor(self.ranks) as pool:
            futures = [pool.submit(guarded, rank) for rank in range(self.ranks)]
        errors = [future.exception() for future in futures]
        for error in errors:
            if error is not None and not isinstance(error, threading.BrokenBarrierError):
                raise error
        return [future.result() for future in futures]


class Group:
    def __init__(self, threads: Threads, rank: int):
        self.threads, self.rank = threads, rank

    def alltoall_base(
        self, output: torch.Tensor, input: torch.Tensor, received: list[int], sent: list[int], options: Any = None
    ) -> Any:
        parts = self.threads.swap(self.rank, input.split(sent))
        mine = [parts[other][self.rank] for other in range(self.threads.ranks)]
        assert [part.numel() for part in mine] == received
        output.copy_(torch.cat(mine))
        self.threads.barrier.wait()
        return DONE

    def allreduce(self, tensors: list[torch.Tensor], options: Any) -> Any:
        assert options.reduceOp == torch.distributed.ReduceOp.MAX
        for tensor in tensors:
            largest = torch.stack([other.clone() for other in self.threads.swap(self.rank, tensor)]).max(0).values
            self.threads.barrier.wait()
            tensor.copy_(largest)
        return DONE

    def broadcast(self, tensors: list[torch.Tensor], options: Any) -> Any:
        for tensor in tensors:
            root = self.threads.swap(self.rank, tensor)[0]
            if self.rank:
                tensor.copy_(root)
            self.threads.barrier.wait()
        return DONE
