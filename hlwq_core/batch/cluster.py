"""Workers on a Ray cluster: an actor a card, each with a ComfyUI of its own. Ray finds the cards and starts actors again elsewhere.

What crosses is JSON and the bytes of files: inputs go with the job, outputs come back in pieces, so no file system is shared.
An actor that is lost is never asked again: another one is made, and gets its first job when it has said that it is ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..client.generate import workflow_path
from ..comfyui import PACK
from ..errors import InputError, ServerError, WorkError
from ..format.places import write_error
from .driver import Worker
from .job import Job, plain
from .making import Say, Unwritable, WorkerLost
from .results import Arrived

PIECE = 16 << 20
_FILES = ("image", "audio", "workflow")


def ray_module() -> Any:
    """Ray, which is an extra.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise InputError(
            "Ray is not installed in this Python",
            expected="ray, of the same version on each machine of the cluster",
            found="none",
            fix='pip install "ray[default]"; one machine needs none: --gpus all starts a ComfyUI a card',
        ) from error


def actors(where: Any, *, say: Say = lambda line: None) -> Sequence[Worker]:
    """Connect to the cluster; a worker for each of its cards, or as many as were asked for.

    Args:
        where: a `pool.Where`; what it says of ComfyUI holds on each machine: its folder, its Python's arguments.

    Raises:
        InputError: there is no Ray, no cluster at the address, or no card in it.
    """
    ray = ray_module()
    if where.gpus:
        raise InputError(
            "--gpus names cards of this machine",
            expected="--ray alone: every card of the cluster; --workers N: so many",
            found=f"--gpus {where.gpus}",
            fix="leave --gpus away",
        )
    if where.log:
        raise InputError(
            "--comfyui-log names a file of this machine",
            expected="--ray without it",
            found=f"--comfyui-log {where.log}",
            fix="leave it away; where a ComfyUI of the cluster fails, the error has the end of its log",
        )
    # Of a cluster that we start; nothing is told to anybody.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {
        "runtime_env": {"py_modules": [str(PACK / "hlwq_core")]},
        "log_to_driver": False,
        "logging_level": "error",
    }
    try:
        if not ray.is_initialized():
            ray.init(address=where.ray, **options)
    except Exception as error:  # Ray raises bare ones too, such as where a busy machine takes too long to start it
        if where.ray == "local":
            raise ServerError(
                "Ray cannot be started on this machine",
                found=error,
                fix="call again; Ray gives up where the machine is too busy",
            ) from error
        raise InputError(
            "there is no Ray cluster at this address",
            expected="auto, HOST:PORT of its head, or local for one of this machine alone",
            found=f"{where.ray}: {error}",
            fix="`ray start --head` on one machine, `ray start --address HOST:6379` on the others; or --ray local",
        ) from error
    cards = int(ray.cluster_resources().get("GPU", 0))
    count = where.workers or cards
    if not count:
        raise InputError(
            "this cluster has no GPU",
            expected="a card for each worker",
            found=f"{int(ray.cluster_resources().get('CPU', 0))} CPUs",
            fix="--workers 2 starts two ComfyUIs on the CPU",
        )
    say(f"Ray at {where.ray}: {count} workers, {cards} cards")
    settings = {
        "comfyui": where.comfyui,
        "base": where.base,
        "python": where.python,
        "extra": list(where.extra),
        "timeout": where.timeout,
        "cpu": None if cards else True,
    }
    return [RayWorker(f"ray{number}", ray, settings, gpu=bool(cards), say=say) for number in range(count)]


def _actor_class() -> type:
    """The class of the actors. It stands in a function so that Ray sends its code, and not its name: a machine of the cluster
    learns of this package only when it makes an actor."""

    class Actor:
        def __init__(self, settings: str):
            import importlib

            self.host = importlib.import_module("hlwq_core.batch.actor").Host(settings)

        async def ready(self) -> str:
            return await self.host.ready()

        async def make(self, slot: int, job: str, files: dict[str, bytes]) -> str:
            return await self.host.make(slot, job, files)

        async def piece(self, name: str, offset: int, size: int) -> bytes:
            return self.host.piece(name, offset, size)

        async def forget(self, names: list[str]) -> None:
            self.host.forget(names)

        async def stop(self) -> None:
            await self.host.stop()

    return Actor


class RayWorker:
    """An actor and its successors.

    Args:
        name: of the worker; the machine's name comes behind it when it is known.
        ray: the module.
        settings: of its ComfyUI.
        gpu: whether it needs a card.
    """

    keeps = False

    def __init__(self, name: str, ray: Any, settings: dict[str, Any], *, gpu: bool, say: Say):
        self.name = name
        self._ray = ray
        self._settings = json.dumps(settings)
        self._gpu = gpu
        self._say = say
        self._actor: Any = None
        self._telling: set[asyncio.Future[None]] = set()

    async def start(self) -> None:
        """See `Worker`. Waits as long as the cluster has no place; whoever is placed says so when its ComfyUI answers."""
        await self.stop()
        needs = {"num_gpus": 1} if self._gpu else {"num_cpus": 1}
        remote = self._ray.remote(max_restarts=0, max_task_retries=0, max_concurrency=64, **needs)(_actor_class())
        self._actor = remote.remote(self._settings)
        with self._lost_if_dead():
            told = json.loads(await self._actor.ready.remote())
        if "error" in told:
            raise ServerError(str(told["error"]), fix=None)
        self._say(f"{self.name}: ComfyUI answers on {told['host']} after {told['seconds']:.0f} s")

    async def make(
        self, slot: int, job: Job, part: Callable[[], Path], queued: str | None, queuing: Callable[[str], None]
    ) -> Arrived:
        """See `Worker`."""
        values = plain(job.request)
        files = {}
        for key in _FILES:
            path = getattr(job.request, key) or (workflow_path(job.request) if key == "workflow" else None)
            if path is not None:
                try:
                    files[key] = await asyncio.to_thread(Path(path).read_bytes)
                except OSError as error:
                    raise InputError(
                        "the file cannot be read", file=path, found=error.strerror or error, fix="correct the path"
                    ) from error
                values[key] = Path(path).name
        with self._lost_if_dead():
            told = json.loads(await self._actor.make.remote(slot, json.dumps(values), files))
            if "lost" in told:
                raise WorkerLost(ServerError(str(told["lost"]), fix=None))
            if "error" in told:
                failed = WorkError(str(told["error"]), fix=None)
                failed.final = bool(told["final"])
                raise failed
            arrived = Arrived([], **told["run"])
            for file in told["files"]:
                arrived.parts.append((await self._fetch(file, part()), str(file["name"]), str(file["sha256"])))
        # Not waited for: all has arrived, and neither a dead actor nor one that hangs is to take that away.
        telling = asyncio.ensure_future(_tell(self._actor, [file["part"] for file in told["files"]]))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)
        return arrived

    async def take_back(self, prompt_ids: Sequence[str]) -> None:
        """See `Worker`. The actor's ComfyUI ends with the actor."""

    async def _fetch(self, file: dict[str, Any], path: Path) -> Path:
        digest, offset, size = hashlib.sha256(), 0, int(file["size"])
        try:
            with path.open("wb") as out:
                while offset < size:
                    piece = await self._actor.piece.remote(file["part"], offset, PIECE)
                    if not piece:
                        break
                    digest.update(piece)
                    out.write(piece)
                    offset += len(piece)
                out.flush()
                os.fsync(out.fileno())
        except OSError as error:
            if isinstance(error, self._ray.exceptions.RayError):
                raise
            raise Unwritable(write_error(path, error)) from error
        if digest.hexdigest() != file["sha256"]:
            raise WorkerLost(
                ServerError(f"{file['name']} arrived as another file than {self.name} has", fix="call again")
            )
        return path

    @contextlib.contextmanager
    def _lost_if_dead(self) -> Any:
        try:
            yield
        except self._ray.exceptions.RayError as error:
            words = str(error).strip().splitlines() or [type(error).__name__]
            raise WorkerLost(ServerError(f"the actor of {self.name} is gone: {words[0]}", fix="call again")) from error

    async def stop(self) -> None:
        """See `Worker`."""
        actor, self._actor = self._actor, None
        if actor is None:
            return
        try:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(_answer(actor.stop.remote()), 15)
        finally:  # also where we are cancelled meanwhile: nobody else knows the actor by now
            with contextlib.suppress(Exception):
                self._ray.kill(actor, no_restart=True)


async def _answer(reference: Any) -> Any:
    return await reference


async def _tell(actor: Any, parts: list[str]) -> None:
    with contextlib.suppress(Exception):
        await actor.forget.remote(parts)
