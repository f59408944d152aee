"""The driver of a batch: hands jobs to workers, a few to each, and writes down what becomes of them.

A job that fails by itself is tried again a stated number of times. A worker that dies costs its jobs nothing: they go to the next
that is free, and the worker is started again. Whatever ends the driver, the journal tells the next one where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..errors import HLWQError, ServerError, WorkError
from .job import Job
from .journal import State
from .making import Unwritable, WorkerLost
from .results import Arrived, Results, discard

STARTS = 5  # starts in a row of one worker without an output in between, before it is given up
DEATHS = 5  # workers that may die at one job before it is taken for the cause
_PAUSE = 1.0  # seconds before a worker is started again; doubles


ALIKE = 10  # jobs, all from the first on, that are refused for one reason, before the others are spared it


def is_open(state: State, tries: int) -> bool:
    """Whether there is something left to do for a job."""
    return state.made is None and not state.refused and len(state.failures) < tries


class Worker(Protocol):
    """Something that makes jobs.

    Attributes:
        name: in the journal and the manifest.
        keeps: whether what was queued there runs on when we are gone.
    """

    name: str
    keeps: bool

    async def start(self) -> None:
        """Be ready for jobs; called again after it was lost."""

    async def make(
        self, slot: int, job: Job, part: Callable[[], Path], queued: str | None, queuing: Callable[[str], None]
    ) -> Arrived:
        """Make a job, see `making.make`. `slot`: which of the jobs that it is given at a time, from 0."""

    async def take_back(self, prompt_ids: Sequence[str]) -> None:
        """These are not wanted any more; for workers that keep what was queued."""

    async def stop(self) -> None:
        """End it; safe to call twice."""


class Events:
    """What a driver tells while it works; a progress bar overrides what it shows."""

    def say(self, line: str) -> None:
        """Something that a person should know."""

    def begin(self, total: int, done: int) -> None:
        """How many jobs there are, and how many an earlier call has made."""

    def started(self, job: Job, worker: str) -> None:
        """A job was given to a worker."""

    def made(self, job: Job, worker: str, seconds: float) -> None:
        """A job has its output."""

    def failed(self, job: Job, error: str, left: int) -> None:
        """A job failed; it is tried `left` times more."""

    def workers(self, ready: int) -> None:
        """So many workers are ready."""


class _Refused(Exception):
    """All are refused for one reason."""

    def __init__(self, error: HLWQError):
        super().__init__(str(error))
        self.error = error


class Driver:
    """Makes jobs with workers.

    Args:
        jobs: in the order in which they are begun.
        results: where the outputs go.
        tries: how often a job may fail by itself.
        depth: how many jobs a worker is given at a time: one runs, the others wait in its queue.
        deaths: how many workers may die at one job before it is taken for the cause.
        alike: when the first so many jobs are refused for one reason, that is the batch's error, and no job's.

    Attributes:
        stopped_by: what ended the batch before all jobs were made or had failed.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        workers: Sequence[Worker],
        results: Results,
        *,
        tries: int = 2,
        depth: int = 2,
        events: Events | None = None,
        alike: int = ALIKE,
        deaths: int = DEATHS,
    ):
        self.results = results
        self.journal = results.journal
        self.workers = list(workers)
        self.tries, self.depth = tries, depth
        self.events = events or Events()
        self.stopped_by: BaseException | None = None
        self._waiting: deque[Job] = deque()
        self._kept: dict[str, deque[Job]] = {}  # by the worker that may still have them in its queue
        # By worker and prompt: what was queued and has neither ended nor been taken back.
        self._lying: dict[tuple[str, str], Job] = {}
        self._open = 0
        self._total = len(jobs)
        self._deaths: dict[str, int] = {}
        self._in_work: dict[str, list[str]] = {}  # by worker, in the order in which they were given
        self._changed = asyncio.Condition()
        self._ready: set[str] = set()
        self._given_up: set[str] = set()
        self._jobs = list(jobs)
        self._alike, self._most_deaths = alike, deaths
        self._refused: list[str] | None = []  # jobs; None as soon as one was not

    async def run(self) -> None:
        """Make all jobs.

        Raises:
            HLWQError: nothing more can be made: no worker is left, or the disk takes nothing.
        """
        self._sort_out()
        self.events.begin(self._total, self._total - self._open)
        lanes = {asyncio.ensure_future(self._work(worker)) for worker in self.workers} if self._open else set()
        try:
            while lanes and self._open:
                done, lanes = await asyncio.wait(lanes, return_when=asyncio.FIRST_COMPLETED)
                for lane in done:
                    lane.result()
        except _Refused as refused:
            self.stopped_by = refused.error
        finally:
            await _to_its_end(self._clean_up(lanes))
        if self._refused:
            self._forgive()
        if self._open:
            last = self.stopped_by
            if isinstance(last, HLWQError):
                raise last
            raise ServerError("no worker is left", fix="look at what they said, then call again")

    async def _clean_up(self, lanes: Collection[asyncio.Future[None]]) -> None:
        for lane in lanes:
            lane.cancel()
        await asyncio.gather(*lanes, return_exceptions=True)
        await asyncio.gather(*map(self._leave, self.workers))

    async def _leave(self, worker: Worker) -> None:
        """What lies in a worker's queue does not run on without us."""
        with contextlib.suppress(Exception):
            if mine := [place for place in self._lying if place[0] == worker.name]:
                await asyncio.wait_for(worker.take_back([prompt_id for _, prompt_id in mine]), 10)
                for place in mine:
                    del self._lying[place]
        with contextlib.suppress(Exception):
            await worker.stop()

    @property
    def left(self) -> list[str]:
        """The servers that may still run something of ours, by name."""
        return sorted({name for name, _ in self._lying})

    def _sort_out(self) -> None:
        """Which jobs are left, and which of them may still lie in a worker's queue."""
        keeping = {worker.name for worker in self.workers if worker.keeps}
        for job in self._jobs:
            state = self.results.state(job)
            if not is_open(state, self.tries):
                continue
            self._open += 1
            job.queued = state.queued
            if state.queued is not None and state.queued[0] in keeping:
                self._lying[state.queued] = job
                self._kept.setdefault(state.queued[0], deque()).append(job)
            else:
                self._waiting.append(job)

    # ---- one worker ----

    async def _work(self, worker: Worker) -> None:
        """Keep a worker at work until nothing is left, or it is given up."""
        starts, before = 0, False
        while self._open:
            made: list[str] = []
            try:
                await worker.start()
                before = True
                self._set_ready(worker, True)
                await self._lanes(worker, made)
                return
            except (WorkerLost, ServerError) as lost:
                error = lost.error if isinstance(lost, WorkerLost) else lost
            finally:
                self._set_ready(worker, False)
            await worker.stop()
            starts = 0 if made else starts + 1
            if not before or starts >= STARTS:
                self.stopped_by = error
                self._given_up.add(worker.name)
                if len(self._given_up) < len(self.workers):  # the last one's reason is what `run` raises
                    self.events.say(f"{worker.name} is given up: {error}")
                await self._release(worker)
                return
            self.events.say(f"{worker.name} is lost and started again: {error.what.splitlines()[0]}")
            await asyncio.sleep(min(_PAUSE * 2**starts, 30))

    def _set_ready(self, worker: Worker, ready: bool) -> None:
        (self._ready.add if ready else self._ready.discard)(worker.name)
        self.events.workers(len(self._ready))

    async def _release(self, worker: Worker) -> None:
        async with self._changed:
            self._waiting.extendleft(reversed(self._kept.pop(worker.name, deque())))
            self._changed.notify_all()

    async def _lanes(self, worker: Worker, made: list[str]) -> None:
        lanes = [asyncio.ensure_future(self._lane(worker, slot, made)) for slot in range(self.depth)]
        try:
            await asyncio.gather(*lanes)
        finally:
            for lane in lanes:
                lane.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)

    async def _lane(self, worker: Worker, slot: int, made: list[str]) -> None:
        while (job := await self._next(worker)) is not None:
            self.events.started(job, worker.name)
            in_work = self._in_work.setdefault(worker.name, [])
            in_work.append(job.id)
            settled = False
            try:
                settled = await self._attempt(worker, slot, job)
                made.append(job.id)
            except WorkerLost as lost:
                settled = self._died_at(worker, job, lost)
                if settled:  # the others are not to suffer for it
                    made.append(job.id)
                raise
            finally:
                in_work.remove(job.id)
                await asyncio.shield(self._put_back(worker, job, settled))

    async def _next(self, worker: Worker) -> Job | None:
        async with self._changed:
            while self._open:
                if kept := self._kept.get(worker.name):
                    return kept.popleft()
                if self._waiting:
                    return self._waiting.popleft()
                await self._changed.wait()
        return None

    async def _put_back(self, worker: Worker, job: Job, settled: bool) -> None:
        async with self._changed:
            if settled:
                self._open -= 1
            elif job.queued in self._lying and job.queued[0] == worker.name and worker.name not in self._given_up:
                # It runs there, or has: nobody else is to make it again as long as the worker may come back.
                self._kept.setdefault(worker.name, deque()).appendleft(job)
            elif self.results.state(job).failures or self._deaths.get(job.id, 0) > 1:
                self._waiting.append(job)  # after the others
            else:
                self._waiting.appendleft(job)
            self._changed.notify_all()

    async def _attempt(self, worker: Worker, slot: int, job: Job) -> bool:
        """Try a job once; whether that was the last time."""

        def queuing(prompt_id: str) -> None:
            if worker.keeps:
                self.journal.queued(job.id, worker.name, prompt_id)
                self._has_ended(worker, job)
                job.queued = (worker.name, prompt_id)
                self._lying[job.queued] = job

        parts: list[Path] = []

        def part() -> Path:
            parts.append(self.results.part(job))
            return parts[-1]

        queued = job.queued[1] if job.queued and job.queued[0] == worker.name else None
        begun = time.monotonic()
        try:
            try:
                arrived = await worker.make(slot, job, part, queued, queuing)
            except BaseException:
                discard(parts)  # a worker may die between two files
                raise
        except Unwritable as error:
            raise error.error from error
        except HLWQError as error:
            self._has_ended(worker, job)
            job.queued = None
            return self._failed(worker, job, error)
        self._has_ended(worker, job)
        try:
            self.results.commit(job, arrived, worker.name)
        except HLWQError:
            if self.results.state(job).made is None:  # else they only lack their names, which the next call gives
                discard(parts)
            raise
        self._refused = None
        self.events.made(job, worker.name, arrived.seconds or time.monotonic() - begun)
        return True

    def _has_ended(self, worker: Worker, job: Job) -> None:
        """What the worker had of a job lies there no longer."""
        if job.queued and job.queued[0] == worker.name:
            self._lying.pop(job.queued, None)

    def _failed(self, worker: Worker, job: Job, error: HLWQError) -> bool:
        final = error.final if isinstance(error, WorkError) else True
        self.journal.failed(job.id, str(error), worker.name, final)
        self._look_for_one_reason(job, error, final)
        left = 0 if final else max(0, self.tries - len(self.results.state(job).failures))
        self.events.failed(job, str(error), left)
        return left == 0

    def _look_for_one_reason(self, job: Job, error: HLWQError, final: bool) -> None:
        if self._refused is None:
            return
        states = self.journal.jobs
        if not final or any(states[other].failures[-1]["error"] != str(error) for other in self._refused):
            self._refused = None
            return
        self._refused.append(job.id)
        if len(self._refused) >= min(self._alike, self._total):
            raise _Refused(error)

    def _forgive(self) -> None:
        """What was refused for the one reason is tried again by the next call."""
        if self._total > 1 and self.stopped_by is not None:
            for job in self._refused or ():
                self.journal.again(job)

    def _died_at(self, worker: Worker, job: Job, lost: WorkerLost) -> bool:
        """A worker died. A job at which worker after worker dies is taken for the cause; whether this one is."""
        if self._in_work[worker.name][0] != job.id:
            return False  # it waited behind another one
        self._deaths[job.id] = self._deaths.get(job.id, 0) + 1
        # A server that runs may be out of reach for reasons of its own; one that was started has died.
        if self._deaths[job.id] < self._most_deaths or worker.keeps:
            return False
        error = WorkError(
            f"{self._most_deaths} workers died at this job; the last one: {lost.error}",
            fix="make it smaller or shorter",
        )
        error.final = True
        return self._failed(worker, job, error)


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Wait for work that another signal to stop shall not end half done."""
    task, cancelled = asyncio.ensure_future(work), None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
