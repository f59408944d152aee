"""Workers on a Ray cluster, with a stand-in for Ray that runs actors in this process. The real one: test_rounds.py."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hlwq_core.batch import cluster
from hlwq_core.batch.cluster import PIECE, RayWorker
from hlwq_core.batch.job import Job
from hlwq_core.batch.making import Unwritable, WorkerLost
from hlwq_core.batch.pool import Where, pool
from hlwq_core.client.generate import Request
from hlwq_core.errors import DiskFullError, HLWQError, InputError, ServerError, WorkError

from .conftest import Place

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the fake's processes are looked for in /proc"),
]


class RayError(Exception):
    pass


class Method:
    def __init__(self, actor: Actor, call: Any):
        self.actor, self.call = actor, call

    def remote(self, *args: Any) -> Any:
        async def run() -> Any:
            if self.actor.dead:
                raise RayError("The actor died unexpectedly before finishing this task.\nclass_name: Actor")
            result = await self.call(*args)
            self.actor.calls += 1
            return result

        return asyncio.ensure_future(run())


class Actor:
    def __init__(self, inner: Any):
        self.inner, self.dead, self.calls = inner, False, 0

    def __getattr__(self, name: str) -> Method:
        return Method(self, getattr(self.inner, name))


class Ray:
    """`resources` of the cluster; `actors` that were made, with what they asked for."""

    exceptions = SimpleNamespace(RayError=RayError)
    broken = ("busy:1",)

    def __init__(self, **resources: float):
        self.resources, self.actors, self.asked, self.given = resources, [], [], {}

    def is_initialized(self) -> bool:
        return False

    def init(self, **given: Any) -> None:
        if given["address"] == "nowhere:1":
            raise ConnectionError("Could not find any running Ray instance")
        if given["address"] in self.broken:
            raise Exception("The current node timed out during startup.")
        self.given = given

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def remote(self, **asked: Any) -> Any:
        def wrap(kind: type) -> Any:
            def make(settings: str) -> Actor:
                self.asked.append(asked)
                self.actors.append(Actor(kind(settings)))
                return self.actors[-1]

            return SimpleNamespace(remote=make)

        return wrap

    def kill(self, actor: Actor, no_restart: bool) -> None:
        actor.dead = True


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    ray = Ray(CPU=2.0)
    monkeypatch.setattr(cluster, "ray_module", lambda: ray)
    return ray


def settings(place: Place, **more: Any) -> dict[str, Any]:
    given = {"comfyui": str(place.comfyui), "base": None, "python": None, "extra": [], "timeout": 60.0, "cpu": True}
    return {**given, **more}


def job(place: Place, prompt: str, **more: Any) -> Job:
    return Job(Request(prompt=prompt, workflow=place.workflow, seed=7, **more), "name", prompt, "ab")


def worker(place: Place, ray: Ray, **more: Any) -> RayWorker:
    return RayWorker("ray0", ray, settings(place, **more), gpu=False, say=lambda line: None)


async def make(worker: RayWorker, job: Job, part: Path) -> Any:
    return await worker.make(0, job, lambda: part, None, lambda prompt_id: None)


def test_inputs_go_and_outputs_come_as_bytes(place: Place, ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "PIECE", 100)
    picture = place.folder / "picture.png"
    picture.write_bytes(b"picture")

    async def go() -> None:
        ray0 = worker(place, ray)
        await ray0.start()
        arrived = await make(ray0, job(place, "rain", image=picture), place.folder / "part")
        ((path, name, digest),) = arrived.parts
        content = path.read_bytes()
        assert f"film of rain, seed 7, picture {hashlib.sha256(b'picture').hexdigest()}".encode() in content
        assert digest == hashlib.sha256(content).hexdigest() and name.endswith(".mp4") and arrived.seconds > 0
        for _ in range(500):  # it is told to forget them, and nobody waits for it
            if not list(ray.actors[0].inner.host.folder.iterdir()):
                break
            await asyncio.sleep(0.01)
        assert not list(ray.actors[0].inner.host.folder.iterdir())
        with pytest.raises(WorkError, match="no FAIL") as failed:
            await make(ray0, job(place, "FAIL"), place.folder / "part")
        assert not failed.value.final
        with pytest.raises(WorkError, match="not this") as refused:
            await make(ray0, job(place, "REFUSE"), place.folder / "part")
        assert refused.value.final
        await ray0.stop()
        assert ray.actors[0].dead

    asyncio.run(go())
    assert PIECE > 1 << 20 and place.none_alive()


def test_an_actor_that_dies_when_its_files_have_arrived_has_made_the_job(place: Place, ray: Ray) -> None:
    async def go() -> None:
        ray0 = worker(place, ray)
        await ray0.start()
        actor = ray.actors[0]
        piece = actor.inner.piece

        async def last(*args: Any) -> bytes:
            actor.dead = True  # the next call finds it so
            return await piece(*args)

        actor.inner.piece = last
        arrived = await make(ray0, job(place, "rain"), place.folder / "part")
        assert b"film of rain" in arrived.parts[0][0].read_bytes()
        actor.dead = False  # ends its ComfyUI
        await ray0.stop()

    asyncio.run(go())


def test_cancelled_while_an_actor_is_stopped_it_is_killed(place: Place, ray: Ray) -> None:
    async def go() -> None:
        ray0 = worker(place, ray)
        await ray0.start()
        actor = ray.actors[0]
        stop = actor.inner.stop

        async def hangs() -> None:
            await asyncio.sleep(60)

        actor.inner.stop = hangs
        stopping = asyncio.ensure_future(ray0.stop())
        await asyncio.sleep(0.05)
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        assert actor.dead
        await stop()

    asyncio.run(go())


def test_an_actor_keeps_nothing_of_a_job_that_failed(place: Place, ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two files cannot be fetched: the first is not to lie there until its ComfyUI ends."""
    from hlwq_core.batch import actor

    async def half(self: Any, slot: int, job: Job, part: Any, *others: Any) -> Any:
        part().write_bytes(b"the first")
        part()
        raise WorkError("ComfyUI does not give the file", fix="look")

    async def go() -> None:
        ray0 = worker(place, ray)
        await ray0.start()
        monkeypatch.setattr(actor.OwnServer, "make", half)
        with pytest.raises(WorkError, match="does not give"):
            await make(ray0, job(place, "rain"), place.folder / "part")
        assert not list(ray.actors[0].inner.host.folder.iterdir())
        await ray0.stop()

    asyncio.run(go())


def test_a_dead_comfyui_and_a_dead_actor_are_the_workers(place: Place, ray: Ray) -> None:
    """Not the job's; and the next start makes another actor."""

    async def go() -> None:
        ray0 = worker(place, ray)
        await ray0.start()
        with pytest.raises(WorkerLost, match="has ended"):
            await make(ray0, job(place, "DIE"), place.folder / "part")
        await ray0.start()
        assert len(ray.actors) == 2 and ray.actors[0].dead
        ray.actors[1].dead = True
        with pytest.raises(WorkerLost, match="the actor of ray0 is gone: The actor died") as lost:
            await make(ray0, job(place, "rain"), place.folder / "part")
        assert lost.value.error.fix
        ray.actors[1].dead = False  # ends its ComfyUI
        await ray0.stop()

    asyncio.run(go())
    assert place.none_alive()


def test_what_arrives_damaged_and_a_full_disk(place: Place, ray: Ray) -> None:
    async def go() -> None:
        ray0 = worker(place, ray)
        await ray0.start()
        host = ray.actors[0].inner.host
        piece = host.piece
        host.piece = lambda *asked: piece(*asked).replace(b"film", b"flim")
        with pytest.raises(WorkerLost, match="another file"):
            await make(ray0, job(place, "rain"), place.folder / "part")
        host.piece = piece
        if Path("/dev/full").exists():
            with pytest.raises(Unwritable) as full:
                await make(ray0, job(place, "rain"), Path("/dev/full"))
            assert isinstance(full.value.error, DiskFullError)
        with pytest.raises(InputError):
            await make(ray0, job(place, "rain", image=place.folder / "none.png"), place.folder / "part")
        await ray0.stop()

    asyncio.run(go())


def test_a_busy_machine_on_which_ray_does_not_start(ray: Ray) -> None:
    """Found while batches were killed beside the whole suite: Ray raises a bare Exception."""
    ray.broken = ("local",)  # type: ignore[assignment]
    with pytest.raises(ServerError, match="Ray cannot be started") as caught:
        pool(Where(ray="local", workers=2))
    assert "timed out during startup" in str(caught.value) and "call again" in str(caught.value)


def test_a_machine_without_a_comfyui(place: Place, ray: Ray) -> None:
    async def go() -> None:
        await worker(place, ray, comfyui="/nowhere").start()

    with pytest.raises(ServerError, match="not a ComfyUI"):
        asyncio.run(go())


def test_a_worker_a_card(place: Place, ray: Ray) -> None:
    ray.resources = {"CPU": 64.0, "GPU": 4.0}
    where = Where(comfyui="/opt/ComfyUI", ray="auto")
    assert [w.name for w in pool(where)] == ["ray0", "ray1", "ray2", "ray3"]
    assert ray.given["address"] == "auto" and ray.given["runtime_env"]["py_modules"][0].endswith("hlwq_core")
    where.workers = 6
    workers = pool(where)
    assert len(workers) == 6 and json.loads(workers[0]._settings)["cpu"] is None  # type: ignore[attr-defined]

    async def go() -> None:
        with pytest.raises(HLWQError):  # there is no such folder here
            await workers[0].start()

    asyncio.run(go())
    assert ray.asked[0]["num_gpus"] == 1


@pytest.mark.parametrize(
    ("where", "says"),
    [
        (Where(ray="auto"), "no GPU"),
        (Where(ray="nowhere:1"), "no Ray cluster at this address"),
        (Where(ray="busy:1"), "no Ray cluster at this address"),
        (Where(ray="auto", gpus="all"), "--gpus names cards of this machine"),
        (Where(ray="auto", log="x.txt"), "--comfyui-log names a file of this machine"),
    ],
)
def test_what_there_is_not_in_a_cluster(ray: Ray, where: Where, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        pool(where)
    assert caught.value.fix
