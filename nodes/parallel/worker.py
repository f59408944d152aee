"""The process of a card that is not ComfyUI's own: it loads the model itself, and computes its part of each forward."""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...hlwq_core.parallel import message
from ...hlwq_core.parallel.exchange import Council, Exchange
from ...hlwq_core.parallel.groups import Groups
from ...hlwq_core.parallel.processes import Leader, Message
from .. import compat
from ..running.choices import KEY, Choices
from . import calls, patches
from .splitting import Split, Stopped

_log = logging.getLogger("hlwq")


class Worker:
    """What this process does when it is told.

    Args:
        leader: tells.
        patcher: of the model, as it comes from its files.
    """

    def __init__(self, leader: Leader, patcher: Any):
        self._leader = leader
        self._pristine = self._patcher = patcher
        self._device: torch.device = patcher.load_device
        self._groups: Groups | None = None
        self._exchange: Exchange | None = None
        self._split: Split | None = None
        self._run = contextlib.ExitStack()

    def connect(self, told: Message) -> Message:
        """Meet the others."""
        rank, ranks = told["rank"], told["ranks"]
        self._groups = Groups(Path(told["meeting"]), rank, ranks, self._device)
        self._exchange = Exchange(self._groups.data, rank, ranks)
        self._split = Split(self._inner, self._exchange, Council(self._groups.control))
        greeting = torch.zeros(1, device=self._device)
        self._exchange.broadcast([greeting])
        return {"greeting": float(greeting)}

    @property
    def _inner(self) -> Any:
        return self._pristine.model.diffusion_model

    def begin(self, told: Message) -> Message:
        """Get ready for a sampling run."""
        if "patches" in told:
            self._patcher = self._pristine.clone()
            if told["patches"]:
                compat.take_patches(self._patcher, patches.read(told["patches"], Path(told["file"])))
        # Another loader's, or changed since this process loaded; attention comes with each call.
        self._patcher.attachments[KEY] = Choices(**told["choices"])
        begun = time.perf_counter()
        compat.load_for_sampling(self._patcher, told["shape"])
        self._patcher.pre_run()
        assert self._split is not None
        self._run.enter_context(self._split.installed())
        return {
            "seconds": time.perf_counter() - begun,
            "loaded": self._patcher.loaded_size(),
            "size": self._patcher.model_size(),
        }

    def forward(self, told: Message) -> None:
        """Compute this card's part; the results are the same on all of them, and ComfyUI's process uses its own."""
        tensors = message.empty(told["tensors"], self._device)
        assert self._exchange is not None
        self._exchange.broadcast(tensors)
        arguments = calls.unpack(told["call"], message.where_they_were(tensors, told["tensors"]))
        with contextlib.suppress(Stopped):
            getattr(self._inner, compat.FORWARD)(**arguments)

    def end(self, told: Message) -> Message:
        """A sampling run has ended."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._run.close()
        self._patcher.cleanup()
        peak = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else 0
        assert self._exchange is not None
        return {"sent": self._exchange.sent, "peak": peak}


def run(given: dict[str, Any], output: int, load: Callable[[], Any]) -> None:
    """Do what the leader says, until it is gone.

    Args:
        given: what this process was started with.
        output: where to speak to it.
        load: gives the model's patcher.
    """
    leader = Leader(output)
    doing = "load"
    try:
        with torch.inference_mode():
            begun = time.perf_counter()
            worker = Worker(leader, load())
            leader.send({"did": doing, "number": 0, "seconds": time.perf_counter() - begun})
            while True:
                told = leader.receive()
                doing = told["do"]
                answer = getattr(worker, doing)(told)
                if answer is not None:
                    leader.send({"did": doing, "number": told["number"], **answer})
    except BaseException as error:
        traceback.print_exc()
        text = f"{doing}: {type(error).__name__}: {error}"
        leader.send({"failed": text, "out_of_memory": isinstance(error, torch.OutOfMemoryError)})
        while True:  # ComfyUI's process ends this one
            leader.receive()
