"""What the driver leaves of attempts that came to nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hlwq_core.batch.driver import Driver
from hlwq_core.batch.job import Job
from hlwq_core.batch.journal import Journal
from hlwq_core.batch.making import WorkerLost
from hlwq_core.batch.results import STATE, Arrived, Results
from hlwq_core.client.generate import Request
from hlwq_core.errors import DiskFullError, ServerError, WorkError

JOB = Job(Request(prompt="p", seed=1), "film", "p", "a" * 16)


class Half:
    """A worker that fails once, when the first of a job's two files has arrived."""

    name, keeps = "half", False

    def __init__(self, error: BaseException | None):
        self.error = error

    async def start(self) -> None:
        pass

    stop = start

    async def take_back(self, prompt_ids: Any) -> None:
        pass

    async def make(self, slot: int, job: Job, part: Callable[[], Path], *others: Any) -> Arrived:
        first = part()
        first.write_bytes(b"a film")
        error, self.error = self.error, None
        if error is not None:
            part()  # of which not a byte has come
            raise error
        return Arrived([(first, "x.mp4", "0" * 64)], 1.0, "id", "0" * 64)


def test_what_arrived_goes_where_it_cannot_be_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with Journal(tmp_path / STATE) as journal:
        results = Results(tmp_path, journal)
        results.begin([JOB], lambda line: None)
        monkeypatch.setattr("hlwq_core.batch.results._sync_folder", full)
        with pytest.raises(DiskFullError):
            asyncio.run(Driver([JOB], [Half(None)], results, depth=1).run())
        assert results.state(JOB).made is None and not list(results.parts.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        WorkerLost(ServerError("the actor is gone", fix="call again")),
        WorkError("ComfyUI does not give the file", fix="look"),
        asyncio.CancelledError(),
        OSError(28, "No space left on device"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_arrived_of_a_failed_attempt_goes(tmp_path: Path, error: BaseException) -> None:
    with Journal(tmp_path / STATE) as journal:
        results = Results(tmp_path, journal)
        results.begin([JOB], lambda line: None)
        driver = Driver([JOB], [Half(error)], results, depth=1)
        try:
            asyncio.run(driver.run())
            made = True
        except (asyncio.CancelledError, OSError):
            made = False
        assert made == isinstance(error, (WorkerLost, WorkError))
        assert not list(results.parts.iterdir())
        assert [path.name for path in tmp_path.glob("film*")] == (["film.mp4"] if made else [])
