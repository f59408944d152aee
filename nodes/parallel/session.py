"""The processes of all cards but ComfyUI's own, as ComfyUI's process sees them: started, told what to do, watched, ended."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import logging
import shutil
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ...hlwq_core.parallel import message
from ...hlwq_core.parallel.exchange import Council, Exchange
from ...hlwq_core.parallel.groups import Groups
from ...hlwq_core.parallel.processes import SILENCE, Message, Worker, session_folder
from .. import compat
from ..running import choices, recorded_blocks
from . import calls, patches
from .cards import Card
from .errors import RankError, rank_error
from .splitting import Split

_log = logging.getLogger("hlwq")

# Seconds: to import ComfyUI and load the model; to get ready for a run; to end one, when this process has done its part.
LOADING, BEGINNING, ENDING = 600.0, 600.0, 60.0
NAME = "HLWQ Several GPUs"


class Session:
    """A model on several cards.

    Args:
        model: ComfyUI's, on its own card. The session ends with it.
        cards: ComfyUI's own first.
        given: what the others' processes are told at their start: which module of the pack runs them, and what it needs.
    """

    def __init__(self, model: torch.nn.Module, cards: Sequence[Card], given: dict[str, Any]):
        self.cards = list(cards)
        self._model = weakref.ref(model)
        self._folder, self._lifeline = session_folder()
        self._changed = threading.Condition()
        self._asked = 0
        self._answers: dict[tuple[int, int], Message] = {}
        self._error: RankError | None = None
        self._closed = False
        self._groups: Groups | None = None
        self._split: Split | None = None
        self._exchange: Exchange | None = None
        self._patches: Any = None
        self._beginning: tuple[int, Path] | None = None
        self._ending: tuple[int, float] | None = None
        self._workers: list[Worker] = []
        self._meeting = self._folder / "meeting"
        try:
            for rank, card in enumerate(self.cards[1:], 1):
                command = [sys.executable, "-u", str(compat.BOOT), json.dumps({**given, **compat.same_comfyui()})]
                self._workers.append(Worker(rank, command, card.environment(), self._folder, self._heard))
        except BaseException:
            self.close()
            raise
        weakref.finalize(model, self.close)
        _log.info("%s: %d more processes start, on %s", NAME, len(self._workers), ", ".join(map(str, cards[1:])))

    # ---- what is heard ------------------------------------------------------------------------------------------------

    def _who(self, rank: int) -> str:
        return f"rank {rank}, {self.cards[rank]},"

    def _heard(self, worker: Worker, said: Message | None) -> None:
        if said is None:
            if not self._closed:
                self._fail(rank_error(self._who(worker.rank), worker.how_it_ended()))
        elif "failed" in said:
            self._fail(rank_error(self._who(worker.rank), said["failed"], said["out_of_memory"]))
        else:
            with self._changed:
                self._answers[worker.rank, said["number"]] = said
                self._changed.notify_all()

    def _fail(self, error: RankError) -> None:
        """The first error counts. Whoever waits in an exchange is let go, and the other processes end."""
        with self._changed:
            if self._error is not None or self._closed:
                return
            self._error = error
            self._changed.notify_all()
        _log.error("%s: %s", NAME, error)
        self.close()

    def check(self) -> None:
        """Raises:
        RankError: a card failed.
        """
        if self._error is not None:
            raise self._error

    @property
    def is_over(self) -> bool:
        """Whether it failed or was closed: another has to be started."""
        return self._closed or self._error is not None

    def _wait_for(self, what: str, number: int, limit: float, stoppable: bool = True) -> list[Message]:
        """Each process's answer to what it was asked as the so-manieth; `stoppable`: Cancel ends the wait."""
        until = time.monotonic() + limit
        with self._changed:
            while True:
                self.check()
                missing = [w.rank for w in self._workers if (w.rank, number) not in self._answers]
                if not missing:
                    return [self._answers.pop((worker.rank, number)) for worker in self._workers]
                if not self._changed.wait(min(1.0, until - time.monotonic())) and time.monotonic() >= until:
                    break
                if stoppable:
                    compat.model_management.throw_exception_if_processing_interrupted()
        self._fail(rank_error(self._who(missing[0]), f"it did not {what} within {limit:.0f} s"))
        self.check()
        raise AssertionError

    def _tell(self, told: Message, **of_rank: list[Any]) -> int:
        """The number to wait for the answers by."""
        self._asked += 1
        for index, worker in enumerate(self._workers):
            own = {name: values[index] for name, values in of_rank.items()}
            worker.send({**told, **own, "number": self._asked})
        return self._asked

    # ---- a run --------------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        if self._groups is not None:
            return
        self._wait_for("load", 0, LOADING)
        ranks = [worker.rank for worker in self._workers]
        number = self._tell({"do": "connect", "meeting": str(self._meeting), "ranks": len(self.cards)}, rank=ranks)
        device = self.cards[0].device
        try:
            self._groups = Groups(self._meeting, 0, len(self.cards), device)
            self._exchange = Exchange(self._groups.data, 0, len(self.cards))
            self._exchange.broadcast([torch.ones(1, device=device)])
        except Exception as error:
            self.check()
            self._fail(rank_error(self._who(0), f"the cards cannot exchange tensors: {error}"))
        if any(answer["greeting"] != 1 for answer in self._wait_for("connect", number, BEGINNING)):
            self._fail(rank_error(self._who(0), "what it sent to the other cards did not come there"))
        self.check()

    @contextlib.contextmanager
    def sampling(self, patcher: Any, shape: Sequence[int]) -> Iterator[None]:
        """While ComfyUI samples: all cards compute its model's forwards.

        Args:
            patcher: of the model, with its patches.
            shape: of the noise.

        Raises:
            RankError: a card failed.
        """
        inner = patcher.model.diffusion_model
        self._connect()
        if self._ending is not None:  # of a run that an error or Cancel ended while they were still loading for it
            self._wait_for("end", *self._ending)
            self._ending = None
        done = threading.Event()
        threading.Thread(target=self._watch, args=(done,), name="hlwq-watch", daemon=True).start()
        try:
            self._begin(patcher, shape)
            with self._split_of(inner).installed(), self._forwards(inner):
                yield
            if self.cards[0].device.type == "cuda":
                torch.cuda.synchronize(self.cards[0].device)
        except BaseException:
            self.check()  # what a card's failure made of this process's own part says less than the failure
            # The next run waits for it: this one has an error to tell, and they may still be loading.
            self._ending = self._tell({"do": "end"}), ENDING if self._beginning is None else BEGINNING
            raise
        else:
            done.set()
            self._wait_for("end", self._tell({"do": "end"}), ENDING, stoppable=False)
        finally:
            done.set()
            if self.is_over:
                recorded_blocks.release(patcher.model)  # they exchange by groups that are gone
        self.check()

    def _begin(self, patcher: Any, shape: Sequence[int]) -> None:
        told: Message = {"do": "begin", "shape": list(shape)}
        if self._beginning is not None:  # of a run that ended before they were ready; by now they have
            self._beginning[1].unlink(missing_ok=True)
        told["choices"] = dataclasses.asdict(patcher.attachments.get(choices.KEY, choices.DEFAULT))
        file = self._folder / f"patches{self._asked}.safetensors"
        if self._patches != patcher.patches_uuid:
            told |= {"patches": patches.write(patcher.patches, file) if patcher.patches else None, "file": str(file)}
        self._patches = patcher.patches_uuid
        self._beginning = self._tell(told), file

    def _wait_until_ready(self) -> None:
        """They get ready while this process does."""
        if self._beginning is None:
            return
        (number, file), self._beginning = self._beginning, None
        ready = self._wait_for("begin", number, BEGINNING)
        file.unlink(missing_ok=True)
        for worker, answer in zip(self._workers, ready, strict=True):
            if answer["loaded"] < answer["size"] and self.cards[worker.rank].memory:
                _log.info(
                    "%s: %s holds %.1f of the model's %.1f GB, the rest comes from memory as it is used",
                    NAME, self.cards[worker.rank], answer["loaded"] / 1e9, answer["size"] / 1e9,
                )  # fmt: skip

    def _split_of(self, inner: Any) -> Split:
        if self._split is None:
            assert self._groups is not None and self._exchange is not None
            self._split = Split(inner, self._exchange, Council(self._groups.control), compat.is_interrupted)
        return self._split

    def _watch(self, done: threading.Event) -> None:
        """A process that neither ends nor speaks hangs."""
        while not done.wait(1.0) and not self.is_over:
            for worker in self._workers:
                if time.monotonic() - worker.last_heard > SILENCE:
                    self._fail(rank_error(self._who(worker.rank), f"nothing was heard of it for {SILENCE:.0f} s"))
                    return

    @contextlib.contextmanager
    def _forwards(self, inner: Any) -> Iterator[None]:
        """While each forward of the model is called on all cards."""
        forward = getattr(inner, compat.FORWARD)

        def on_all(*args: Any, **kwargs: Any) -> Any:
            compat.model_management.throw_exception_if_processing_interrupted()
            self.check()
            tensors: list[torch.Tensor] = []
            call = calls.pack(calls.arguments_of(forward, args, kwargs), tensors)
            device = self.cards[0].device
            assert self._exchange is not None
            self._wait_until_ready()
            try:
                with compat.uninterrupted():  # by one card alone: they agree on it
                    self._tell({"do": "forward", "call": call, "tensors": message.describe(tensors, device)})
                    self._exchange.broadcast([tensor.to(device).contiguous() for tensor in tensors])
                    return forward(*args, **kwargs)
            except compat.InterruptProcessingException:
                raise  # all of them stopped at the same block
            except BaseException as error:
                self._broken(error)
                raise

        inner.__dict__[compat.FORWARD] = on_all
        try:
            yield
        finally:
            inner.__dict__.pop(compat.FORWARD, None)

    def _broken(self, error: BaseException) -> None:
        """This process did not finish its part: the others wait for it in vain, or it saw that one of them is gone."""
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
            with self._changed:  # a moment for whoever failed first to say so
                self._changed.wait_for(lambda: self._error is not None, timeout=5)
        if self._error is None:
            text = f"{type(error).__name__}: {error}"
            self._fail(rank_error(self._who(0), text, isinstance(error, torch.OutOfMemoryError)))
        self.check()

    def close(self) -> None:
        """End the processes; safe to call twice."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
        for worker in self._workers:
            worker.kill()
        if self._groups is not None:
            # NCCL waits for recordings that exchange by it, which go later.
            threading.Thread(target=self._groups.abort, name="hlwq-abort", daemon=True).start()
        for worker in self._workers:
            worker.end()
        self._split = None
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lifeline.release()


_sessions: list[Session] = []
_lock = threading.Lock()


def session_of(model: torch.nn.Module, cards: Sequence[Card], given: dict[str, Any]) -> Session:
    """The session of a model, started if there is none. There is one at a time: another model's gives its memory back."""
    with _lock:
        for session in list(_sessions):
            same = session._model() is model and session.cards == list(cards)
            if session.is_over or not same:
                _sessions.remove(session)
                session.close()
        if not _sessions:
            _sessions.append(Session(model, cards, given))
        return _sessions[0]


@atexit.register
def close_all() -> None:
    """End every process of every session."""
    with _lock:
        while _sessions:
            _sessions.pop().close()
