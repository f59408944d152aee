"""From requests to files: where results go, and `generate` and `queue` against a fake ComfyUI."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from hlwq_core import cli
from hlwq_core.batch import results as results_module
from hlwq_core.batch import several
from hlwq_core.batch.several import Target, as_json, describe, make_all, queue, queue_requests
from hlwq_core.batch.workers import RunningServer
from hlwq_core.client.generate import Request
from hlwq_core.errors import HLWQError, InputError, ServerError

from ..client.fake_comfy import WORKFLOW, FakeComfy, finish
from .conftest import Place

pytestmark = pytest.mark.timeout(60)


def play(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 20))


# ---- where results go ----


def test_targets_are_checked_before_any_work(tmp_path: Path) -> None:
    for bad in (tmp_path / "none" / "a.mp4", tmp_path / "a.webm", f"{tmp_path}/none/"):
        with pytest.raises(InputError):
            Target.of(bad, 1, ".mp4")
    assert Target.of(tmp_path / "a", 1, ".mp4").place("x_1_.mp4", 1) == tmp_path / "a.mp4"
    batch = Target.of(tmp_path / "a.mp4", 12, ".mp4")
    assert [batch.place("x.mp4", n).name for n in (1, 12)] == ["a_01.mp4", "a_12.mp4"]


def test_a_server_does_not_choose_the_folder(tmp_path: Path) -> None:
    target = Target.of(tmp_path, 1, ".mp4")
    for outside in ("../../y.mp4", "/etc/y.mp4", "..\\y.mp4"):
        assert target.place(outside, 1) == tmp_path / "y.mp4"
    for device, place in (("NUL.mp4", "_NUL.mp4"), ("z.mp4:stream", "z.mp4_stream"), ("..", "_"), ("", "_")):
        assert target.place(device, 1) == tmp_path / place


# ---- running on a fake ComfyUI ----


def silent(line: str) -> None:
    pass


@pytest.fixture(autouse=True)
def plain_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake's film is no film: keep the probe away from it."""
    monkeypatch.setattr(several, "_probe", lambda path: None)


@pytest.fixture
def workflow(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "w.json"
    path.write_text(json.dumps(WORKFLOW))
    yield path


async def runs(fake: FakeComfy, workflow: Path, folder: Path, count: int = 3) -> several.Outcome:
    requests, labels = queue_requests(workflow, count, [])
    worker = RunningServer(fake.url)
    return await make_all(requests, [worker], Target.of(folder, count, None), labels=labels)


def test_a_queue_of_runs_moves_the_seeds_and_numbers_the_files(workflow: Path, tmp_path: Path) -> None:

    async def go() -> list[dict[str, Any]]:
        async with FakeComfy() as fake:
            await queue(fake.url, workflow, 3, ["Sample it.seed=10"], tmp_path / "out.mp4", say=silent, quiet=True)
            return list(fake.prompts.values())

    prompts = play(go())
    assert [p["2"]["inputs"]["seed"] for p in prompts] == [10, 11, 12]
    assert sorted(p.name for p in tmp_path.glob("*.mp4")) == ["out_1.mp4", "out_2.mp4", "out_3.mp4"]
    assert len(list(tmp_path.iterdir())) == 4, "no journal is left of a whole one"


def test_one_failure_in_a_batch_does_not_stop_the_rest(workflow: Path, tmp_path: Path) -> None:
    done = []

    async def run(fake: FakeComfy, prompt_id: str) -> None:
        done.append(prompt_id)
        if len(done) != 2:
            return await finish(fake, prompt_id)
        await fake.wait_for_socket()
        data = {"node_id": "2", "node_type": "Sampler", "exception_message": "boom", "exception_type": "ValueError"}
        await fake.end(prompt_id, [["execution_error", data]])

    async def go() -> Any:
        async with FakeComfy(run) as fake:
            return await runs(fake, workflow, tmp_path)

    results = play(go()).results
    assert [r.error is None for r in results] == [True, False, True]
    assert "boom" in describe(results[1]) and as_json(results[1])["error"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "a_1.mp4", "w.json"]


def out_of_reach(gone: Callable[[], bool]) -> Any:
    """What a gateway answers while its server is gone."""

    @web.middleware
    async def away(request: web.Request, handler: Any) -> Any:
        return web.Response(status=502) if gone() else await handler(request)

    return away


@web.middleware
async def slow(request: web.Request, handler: Any) -> Any:
    """What takes prompts back takes its time."""
    if request.method == "POST" and request.path in ("/queue", "/interrupt"):
        await asyncio.sleep(0.2)
    return await handler(request)


@pytest.mark.parametrize("status", [500, 404])
def test_a_prompt_that_is_not_taken_back_is_not_forgotten(workflow: Path, tmp_path: Path, status: int) -> None:
    @web.middleware
    async def refuses(request: web.Request, handler: Any) -> Any:
        if request.method == "POST" and request.path == "/queue":
            return web.Response(status=status)
        return await handler(request)

    async def run(fake: FakeComfy, prompt_id: str) -> None:
        await fake.wait_for_socket()
        running.set()
        await asyncio.sleep(30)

    async def go() -> None:
        nonlocal running
        running = asyncio.Event()
        async with FakeComfy(run, [refuses]) as fake:
            work = asyncio.ensure_future(runs(fake, workflow, tmp_path, 1))
            await running.wait()
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work

    running: asyncio.Event
    play(go())
    assert [p.name for p in tmp_path.glob(".hlwq-*/*.jsonl")] == ["journal.jsonl"]


def test_a_server_that_hangs_keeps_no_other_from_being_told(workflow: Path, tmp_path: Path) -> None:
    hangs = False

    @web.middleware
    async def slowly(request: web.Request, handler: Any) -> Any:
        while hangs:
            await asyncio.sleep(0.02)
        return await handler(request)

    async def run(fake: FakeComfy, prompt_id: str) -> None:
        await asyncio.sleep(30)

    async def go() -> None:
        nonlocal hangs
        async with FakeComfy(run, [slowly]) as first, FakeComfy(run) as second:
            requests, labels = queue_requests(workflow, 4, [])
            workers = [RunningServer(first.url), RunningServer(second.url)]
            work = asyncio.ensure_future(make_all(requests, workers, Target.of(tmp_path, 4, None), labels=labels))
            while not (first.running and second.running):
                await asyncio.sleep(0.01)
            hangs = True
            begun = time.monotonic()
            work.cancel()
            while not second.interrupted:
                await asyncio.sleep(0.01)
            assert time.monotonic() - begun < 5
            with pytest.raises(asyncio.CancelledError):
                await work
            assert time.monotonic() - begun < 15
            hangs = False  # else the server's own end would break into its answers

    play(go())


@pytest.mark.parametrize("others", [0, 1], ids=["alone", "beside an idle server"])
def test_a_request_that_fails_leaves_the_other_prompt_where_it_runs(
    workflow: Path, tmp_path: Path, others: int
) -> None:
    """A gateway's hiccup while a file is fetched: the worker is asked again, what runs there goes on, and nobody makes it again."""
    hiccups = [502]

    @web.middleware
    async def gateway(request: web.Request, handler: Any) -> Any:
        if request.path == "/view" and hiccups:
            return web.Response(status=hiccups.pop())
        return await handler(request)

    async def run(fake: FakeComfy, prompt_id: str) -> None:
        if fake.history:  # the second runs while the first one's file is fetched, and some more
            while hiccups:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)
        await finish(fake, prompt_id)

    async def go() -> None:
        async with FakeComfy(run, [gateway]) as first, FakeComfy() as second:
            idle = RunningServer(second.url)
            start = idle.start

            async def start_late() -> None:
                while len(first.prompts) < 2:
                    await asyncio.sleep(0.01)
                await start()

            idle.start = start_late  # type: ignore[method-assign]
            requests, labels = queue_requests(workflow, 2, [])
            workers = [RunningServer(first.url), *[idle][:others]]
            outcome = await make_all(requests, workers, Target.of(tmp_path, 2, None), labels=labels)
            assert [result.error for result in outcome.results] == [None, None] and not hiccups
            assert len(first.prompts) == 2 and not second.prompts and not first.interrupted

    play(go())


def test_a_server_that_stays_away_is_told_of_with_what_it_may_still_run(
    workflow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hlwq_core.batch.driver._PAUSE", 0.01)
    said: list[str] = []
    gone = False

    async def run(fake: FakeComfy, prompt_id: str) -> None:
        nonlocal gone
        await fake.wait_for_socket()
        gone = True
        await fake.drop()

    async def go() -> Any:
        async with FakeComfy(run, [out_of_reach(lambda: gone)]) as fake:
            requests, labels = queue_requests(workflow, 1, [])
            worker = RunningServer(fake.url, patience=0.5)
            return await make_all(requests, [worker], Target.of(tmp_path, 1, None), labels=labels, warn=said.append)

    outcome = play(go())
    assert outcome.error is not None and not outcome.results
    assert len(said) == 1 and "may still run it: the same call follows it" in said[0]
    assert list(tmp_path.glob(".hlwq-*/journal.jsonl"))


def test_a_part_that_stays_for_a_while_repeats_no_failure(workflow: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """A virus scanner holds what arrived of a job that failed: the next call makes it, and does not tell the old error."""
    unlink = Path.unlink

    def held(path: Path, *args: Any, **named: Any) -> None:
        if path.parent.name == "parts":
            raise PermissionError(13, "in use", str(path))
        unlink(path, *args, **named)

    async def run(fake: FakeComfy, prompt_id: str) -> None:
        await fake.wait_for_socket()
        names = ["a.mp4", "b.mp4"]
        await fake.end(
            prompt_id, **{"2": {"images": [{"filename": n, "subfolder": "", "type": "output"} for n in names]}}
        )

    async def go() -> None:
        async with FakeComfy(run) as fake:
            with monkeypatch.context() as patched:
                patched.setattr(Path, "unlink", held)
                outcome = await runs(fake, workflow, tmp_path, 1)
                assert "b.mp4" in str(outcome.results[0].error)
            fake.files["b.mp4"] = b"film"
            outcome = await runs(fake, workflow, tmp_path, 1)
            assert outcome.results[0].error is None and len(fake.prompts) == 2

    play(go())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4", "w.json"]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_cancelling_takes_everything_back(workflow: Path, tmp_path: Path, count: int, twice: bool) -> None:
    """Also where a lane has nothing to do, and where a second signal comes while it is taken back."""

    async def go() -> None:
        running = asyncio.Event()

        async def run(fake: FakeComfy, prompt_id: str) -> None:
            await fake.wait_for_socket()
            running.set()
            await asyncio.wait_for(fake.interruption.wait(), 5)

        async with FakeComfy(run, [slow]) as fake:
            work = asyncio.ensure_future(runs(fake, workflow, tmp_path, count))
            await running.wait()
            while len(fake.prompts) < min(count, 2):
                await asyncio.sleep(0.01)
            work.cancel()
            if twice:
                await asyncio.sleep(0.1)
                work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            assert len(fake.interrupted) == 1 and not fake.pending
            assert len(fake.deleted) == len(fake.prompts) == min(count, 2)

    play(go())
    assert [p.name for p in tmp_path.iterdir()] == ["w.json"]


def test_a_prompt_that_could_not_be_taken_back_is_followed_by_the_same_call(workflow: Path, tmp_path: Path) -> None:
    """The server was out of reach: it runs on, is told so, and is not made twice."""
    said: list[str] = []
    gone = False

    async def run(fake: FakeComfy, prompt_id: str) -> None:
        await fake.wait_for_socket()
        running.set()
        await ended.wait()
        await finish(fake, prompt_id)

    async def go() -> None:
        nonlocal gone, running, ended
        running, ended = asyncio.Event(), asyncio.Event()
        async with FakeComfy(run, [out_of_reach(lambda: gone)]) as fake:

            def call() -> Any:
                requests, labels = queue_requests(workflow, 1, [])
                target = Target.of(tmp_path, 1, None)
                return make_all(requests, [RunningServer(fake.url)], target, labels=labels, say=said.append)

            work = asyncio.ensure_future(call())
            await running.wait()
            gone = True
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            assert said[-1].startswith(fake.url) and "may still run it: the same call follows it" in said[-1]
            assert "nothing is left running" not in said
            gone = False
            ended.set()
            outcome = await call()
            assert [result.error for result in outcome.results] == [None] and len(fake.prompts) == 1

    running: asyncio.Event
    ended: asyncio.Event
    play(go())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "w.json"]


def test_a_video_that_cannot_have_its_name_is_not_made_again(workflow: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """On Windows a player may have the old one open."""
    replace = results_module.os.replace
    refused = [PermissionError(13, "in use")]

    def once(source: Any, target: Any) -> None:
        if str(target).endswith("a.mp4") and refused:
            raise refused.pop()
        replace(source, target)

    monkeypatch.setattr(results_module.os, "replace", once)
    target = tmp_path / "a.mp4"
    target.write_bytes(b"the old one")

    async def go() -> None:
        async with FakeComfy() as fake:
            requests, labels = queue_requests(workflow, 1, [])
            outcome = await make_all(requests, [RunningServer(fake.url)], Target.of(target, 1, None), labels=labels)
            assert isinstance(outcome.error, HLWQError) and not outcome.results, "the old file is no result"
            assert target.read_bytes() == b"the old one"
            await queue(fake.url, workflow, 1, [], target, say=silent, quiet=True)
            assert target.read_bytes() == fake.files["a.mp4"] and len(fake.prompts) == 1

    play(go())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "w.json"]


def test_a_film_that_cannot_be_read_is_a_result_without_its_streams(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.undo()
    (tmp_path / "no film.mp4").write_bytes(b"film")
    assert several._probe(tmp_path / "no film.mp4") is None and several._probe(tmp_path / "moved.mp4") is None


@pytest.mark.parametrize(("command", "servers"), [("generate", 1), ("queue", 1), ("batch", 1), ("batch", 2)])
def test_why_there_is_no_server_is_said_once(
    command: str, servers: int, tmp_path: Path, workflow: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "jobs.csv").write_text("prompt\na\nb\n")
    what = {
        "generate": ["--prompt", "a", "--prompt", "b", "--output", str(tmp_path)],
        "queue": [str(workflow), "--output", str(tmp_path)],
        "batch": [str(tmp_path / "jobs.csv"), "--output", str(tmp_path / "videos")],
    }[command]
    dead = [f"http://127.0.0.{n}:9" for n in range(1, servers + 1)]
    assert cli.main([command, *what, *(arg for url in dead for arg in ("--server", url))]) == 2
    words = capsys.readouterr().err
    for url in dead:
        assert words.count(f"no answer from ComfyUI at {url}") == 1, words
    assert words.count("error: ") == 1


def test_a_workflow_without_a_file_is_no_success(workflow: Path, tmp_path: Path) -> None:
    async def run(fake: FakeComfy, prompt_id: str) -> None:
        await fake.wait_for_socket()
        await fake.end(prompt_id, **{"2": {"text": ["words"]}})

    async def go() -> None:
        async with FakeComfy(run) as fake:
            await queue(fake.url, workflow, 1, output=tmp_path, say=silent, quiet=True)

    with pytest.raises(ServerError, match="without a file"):
        play(go())


# ---- killed, and called again ----


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kill -9, and /proc")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("whom", ["the server", "the call"])
def test_runs_that_were_killed_are_gone_on_with(place: Place, whom: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither starts over nor replaces what was made."""
    monkeypatch.setenv("FAKE_SECONDS", "0.3")
    place.output.mkdir()
    words = ["queue", str(place.workflow), "--count", "4", "--set", "Prompt.text=sea"]
    words += [
        "--comfyui",
        str(place.comfyui),
        "--output",
        str(place.output / "sea.mp4"),
        "--json",
        "--comfyui-args",
        "--cpu",
    ]
    pid = place.fork(words)
    while not (place.output / "sea_1.mp4").exists():  # the second may be there before it
        time.sleep(0.02)
    first = (place.output / "sea_1.mp4").stat().st_mtime_ns
    if whom == "the server":
        for server in place.alive():
            os.kill(server, signal.SIGKILL)
    else:
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == (0 if whom == "the server" else -9)
    if whom == "the call":
        assert place.none_alive() and len(place.made()) < 4
        assert os.waitstatus_to_exitcode(os.waitpid(place.fork(words), 0)[1]) == 0
    log = (place.folder / "log").read_text()
    said = json.loads(log[log.rindex('{\n "results"') :])
    assert [Path(file["path"]).name for r in said["results"] for file in r["files"]] == [
        f"sea_{n}.mp4" for n in (1, 2, 3, 4)
    ]
    assert [f"seed {n}," in text for n, text in enumerate(place.made().values(), 1)] == [True] * 4
    assert (place.output / "sea_1.mp4").stat().st_mtime_ns == first
    assert sorted(p.name for p in place.output.iterdir()) == [f"sea_{n}.mp4" for n in (1, 2, 3, 4)]
    assert len({line.split()[-1] for line in place.ran()}) == 4


def test_a_prompt_without_a_seed_keeps_the_one_that_was_drawn(workflow: Path, tmp_path: Path) -> None:
    request = Request(prompt="x")
    job = several.Job(request, "1", "x", "abc")
    with several.Journal(tmp_path / "state", {"seed": 77}):
        pass
    with several.Journal(tmp_path / "state", {"seed": 99}) as journal:
        several._seed([job], journal)
    assert job.request.seed == 77


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the fake's processes are looked for in /proc")
def test_a_video_that_kills_its_comfyui_is_tried_once_more(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Each start of a large model takes its time; and the reason is told."""
    words = ["queue", str(place.workflow), "--set", "Prompt.text=DIE", "--comfyui", str(place.comfyui), "--json"]
    assert cli.main([*words, "--output", str(place.folder), "--comfyui-args", "--cpu"]) == 2
    out, err = capsys.readouterr()
    assert "2 workers died at this job" in err and "(exit code 1)" in err and "what to do" in err
    assert "(exit code 1)" in json.loads(out)["results"][0]["error"] and len(place.ran()) == 2
