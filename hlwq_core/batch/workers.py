"""Workers on ComfyUIs that this machine reaches: one that runs somewhere, and one that is started and ended with the batch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..client.client import Client
from ..client.server import LocalServer
from ..errors import HLWQError
from . import making
from .job import Job
from .making import Say, Watcher
from .results import Arrived

_AGAIN = 2.0


class _OfClients:
    """What both have: a client for each job at a time, since ComfyUI tells one websocket of a client alone."""

    def __init__(self, say: Say, watcher: Watcher, said: set[str] | None):
        self._say = say
        self._watcher = watcher
        self._said = set() if said is None else said
        self._clients: dict[int, Client] = {}

    def _say_once(self, line: str) -> None:
        """What is said of one job is true for all of a batch, and of the other workers."""
        if line not in self._said and len(self._said) < 1000:
            self._said.add(line)
            self._say(line)

    def _client(self) -> Client:
        raise NotImplementedError

    async def make(
        self, slot: int, job: Job, part: Callable[[], Path], queued: str | None, queuing: Callable[[str], None]
    ) -> Arrived:
        """See `Worker`."""
        if slot not in self._clients:
            self._clients[slot] = await self._client().__aenter__()
        return await making.make(
            self._clients[slot],
            job.request,
            part,
            queued=queued,
            queuing=queuing,
            watcher=self._watcher,
            say=self._say_once,
        )

    async def take_back(self, prompt_ids: Sequence[str]) -> None:
        """See `Worker`."""

    async def _close(self) -> None:
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.__aexit__()


class RunningServer(_OfClients):
    """A ComfyUI that runs; it is never ended.

    Args:
        url, headers, check: see `Client`.
        patience: seconds that it may be out of reach.
        said: lines that were said, for workers that are not to repeat each other's.
    """

    keeps = True

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        patience: float = 120.0,
        check: Callable[[], None] | None = None,
        say: Say = lambda line: None,
        watcher: Watcher = making.quiet,
        said: set[str] | None = None,
    ):
        super().__init__(say, watcher, said)
        self._url, self._headers, self._patience, self._check = url, headers, patience, check
        self._before = False
        self.name = self._client().url

    def _client(self) -> Client:
        return Client(self._url, headers=self._headers, patience=self._patience, check=self._check, say=self._say_once)

    async def start(self) -> None:
        """See `Worker`. One that was there before is waited for."""
        begun = time.monotonic()
        while True:
            try:
                async with self._client() as client:
                    await client.system()
                self._before = True
                return
            except HLWQError:
                if not self._before or time.monotonic() - begun > self._patience:
                    raise
            await asyncio.sleep(_AGAIN)

    async def take_back(self, prompt_ids: Sequence[str]) -> None:
        """See `Worker`."""
        async with self._client() as client:
            await client.cancel(*prompt_ids)

    async def stop(self) -> None:
        """See `Worker`."""
        await self._close()


class OwnServer(_OfClients):
    """A ComfyUI that is started for the batch, with a base directory, port, log, temporary folder and database of its own.

    Args:
        name: of the worker.
        server: makes the server, anew for each start.
        said: see `RunningServer`.
    """

    keeps = False

    def __init__(
        self,
        name: str,
        server: Callable[[], LocalServer],
        *,
        say: Say = lambda line: None,
        watcher: Watcher = making.quiet,
        said: set[str] | None = None,
    ):
        super().__init__(say, watcher, said)
        self.name = name
        self._make_server = server
        self.server: LocalServer | None = None

    def _client(self) -> Client:
        assert self.server is not None
        return Client(self.server.url, check=self.server.check, say=self._say_once)

    async def start(self) -> None:
        """See `Worker`."""
        await self.stop()
        self.server = self._make_server()
        # Here, not in a thread: the kernel binds a child to the thread that started it.
        self.server.launch()
        await asyncio.to_thread(self.server.wait)

    async def make(
        self, slot: int, job: Job, part: Callable[[], Path], queued: str | None, queuing: Callable[[str], None]
    ) -> Arrived:
        """See `Worker`."""
        arrived = await super().make(slot, job, part, queued, queuing)
        if self.server is not None:
            self.server.tidy()
        return arrived

    async def stop(self) -> None:
        """See `Worker`."""
        await self._close()
        server, self.server = self.server, None
        if server is not None:
            await asyncio.to_thread(server.stop)
