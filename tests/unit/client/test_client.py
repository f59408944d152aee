"""The client against a small fake ComfyUI: what goes wrong on the way, and what the user is told."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from hlwq_core.client import client as module
from hlwq_core.client.client import Client, result_files
from hlwq_core.errors import HLWQError, InputError, ServerError

from .fake_comfy import WORKFLOW, FakeComfy, finish

pytestmark = pytest.mark.timeout(30)


def play(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def failing(data: dict[str, Any], kind: str = "execution_error") -> Any:
    async def run(fake: FakeComfy, prompt_id: str) -> None:
        await fake.wait_for_socket()
        await fake.end(prompt_id, [[kind, {"node_id": "2", "node_type": "Sampler", **data}]])

    return run


def error_of(run: Any = None, **changes: Any) -> str:
    """Queue and follow the workflow; the text of the ServerError that comes of it."""

    async def go() -> None:
        async with FakeComfy(run) as fake, Client(fake.url, patience=0.3) as client:
            for name, value in changes.items():
                setattr(fake, name, value)
            await client.follow(await client.queue(WORKFLOW), WORKFLOW)

    with pytest.raises(ServerError) as caught:
        play(go())
    return str(caught.value)


def test_a_prompt_is_followed_to_its_file(tmp_path: Path) -> None:
    seen: list[str] = []

    async def go() -> Path:
        async with FakeComfy() as fake, Client(fake.url) as client:
            entry = await client.follow(await client.queue(WORKFLOW), WORKFLOW, lambda kind, data: seen.append(kind))
            (file,) = result_files(entry)
            assert file["node"] == "2"
            return await client.download(file, tmp_path / "mine.mp4")

    path = play(go())
    assert path.read_bytes() == b"film" * 1000
    assert [p.name for p in tmp_path.iterdir()] == ["mine.mp4"]
    assert seen == ["execution_cached", "executing", "progress_state", "progress_state"]


def test_result_files_leave_temporary_pictures_out() -> None:
    entry = {
        "outputs": {
            "1": {"images": [{"filename": "p.png", "subfolder": "", "type": "temp"}], "text": ["words"]},
            "2": {"images": [{"filename": "a.mp4", "subfolder": "video", "type": "output"}], "animated": [True]},
            "3": {"gifs": [{"filename": "a.mp4", "subfolder": "video", "type": "output"}]},
        }
    }
    assert [(f["node"], f["filename"]) for f in result_files(entry)] == [("2", "a.mp4")]


def test_a_refused_value_is_named_with_the_title_and_the_choices() -> None:
    error = {
        "type": "value_not_in_list",
        "message": "Value not in list",
        "details": "…",
        "extra_info": {
            "input_name": "file",
            "received_value": "c.safetensors",
            "input_config": ["COMBO", {"options": ["a.safetensors", "b.safetensors"]}],
        },
    }
    missing = {"type": "required_input_missing", "extra_info": {"input_name": "model"}}
    text = error_of(
        refuse={
            "error": {"type": "prompt_outputs_failed_validation", "message": "…"},
            "node_errors": {
                "1": {"class_type": "Loader", "errors": [error]},
                "2": {"class_type": "Sampler", "errors": [missing]},
            },
        }
    )
    assert "Load it (Loader, node 1): file: 'c.safetensors' is not there; there is 'a.safetensors', 'b.s" in text
    assert "Sample it (Sampler, node 2): the input 'model' is missing" in text
    assert "what to do:" in text


def test_a_workflow_of_which_only_a_part_is_valid_is_taken_back() -> None:
    missing = {"type": "required_input_missing", "extra_info": {"input_name": "model"}}

    async def go() -> list[str]:
        async with FakeComfy() as fake, Client(fake.url) as client:
            fake.warn = {"2": {"class_type": "Sampler", "errors": [missing]}}
            with pytest.raises(ServerError, match="'model' is missing"):
                await client.queue(WORKFLOW)
            return fake.deleted

    assert len(play(go())) == 1


def test_a_refusal_is_told_where_its_prompt_cannot_be_taken_back() -> None:
    missing = {"type": "required_input_missing", "extra_info": {"input_name": "model"}}

    @web.middleware
    async def gateway(request: web.Request, handler: Any) -> Any:
        return web.Response(status=502) if request.path == "/queue" else await handler(request)

    async def go() -> None:
        async with FakeComfy(middlewares=[gateway]) as fake, Client(fake.url) as client:
            fake.warn = {"2": {"class_type": "Sampler", "errors": [missing]}}
            with pytest.raises(ServerError, match="'model' is missing"):
                await client.queue(WORKFLOW)

    play(go())


def test_a_missing_pack_is_said_to_be_missing() -> None:
    extra = {"class_type": "HLWQLoadCheckpoint", "node_id": "1"}
    text = error_of(refuse={"error": {"type": "missing_node_type", "extra_info": extra}, "node_errors": {}})
    assert "HLWQLoadCheckpoint" in text and "custom_nodes" in text


def test_all_unknown_classes_are_named_at_once() -> None:
    async def go() -> None:
        async with FakeComfy() as fake, Client(fake.url) as client:
            await client.object_info(["Loader", "Nope", "Neither/of them"])

    with pytest.raises(ServerError, match="nodes Nope, Neither/of them"):
        play(go())


def test_an_error_of_the_pack_is_printed_whole() -> None:
    own = "a layer is in neither file\n  tensor: blocks.3.to_q\n  what to do: download it again"
    text = error_of(failing({"exception_message": own + "\n", "exception_type": "pack.errors.IncompleteError"}))
    assert text.startswith("Sample it (Sampler, node 2) failed:")
    assert all(line.strip() in text for line in own.splitlines())
    assert text.count("what to do") == 1


def test_any_other_error_comes_with_its_kind_and_place() -> None:
    data = {
        "exception_message": "mat1 and mat2\n",
        "exception_type": "RuntimeError",
        "traceback": ['  File "nodes.py", line 7, in f\n    g()\n'],
    }
    text = error_of(failing(data))
    assert "RuntimeError: mat1 and mat2" in text
    assert 'raised in File "nodes.py", line 7, in f' in text


def test_out_of_memory_says_what_helps() -> None:
    kind = "torch.OutOfMemoryError"
    assert "--lowvram" in error_of(failing({"exception_message": "Allocation", "exception_type": kind}))


def test_a_stop_from_elsewhere_is_no_success() -> None:
    assert "stopped in ComfyUI (at Sample it)" in error_of(failing({}, "execution_interrupted"))


def test_a_blocked_node_is_an_error_though_the_history_knows_nothing_of_it() -> None:
    async def run(fake: FakeComfy, prompt_id: str) -> None:
        await fake.wait_for_socket()
        data = {"node_id": "2", "node_type": "Sampler", "exception_type": "ExecutionBlocked"}
        await fake.send("execution_error", prompt_id, **data, exception_message="Execution Blocked: no sound")
        await fake.end(prompt_id)

    assert "no sound" in error_of(run)


def test_a_dropped_websocket_loses_nothing() -> None:
    async def run(fake: FakeComfy, prompt_id: str) -> None:
        await fake.wait_for_socket()
        await fake.progress(prompt_id, "2", 1, 8)
        await fake.drop()
        await fake.wait_for_socket()
        await finish(fake, prompt_id)

    values: list[int] = []

    def watch(kind: str, data: dict[str, Any]) -> None:
        if kind == "progress_state":
            values.append(data["nodes"]["2"]["value"])

    async def go() -> tuple[int, dict[str, Any]]:
        async with FakeComfy(run) as fake, Client(fake.url) as client:
            entry = await client.follow(await client.queue(WORKFLOW), WORKFLOW, watch)
            return fake.connections, entry

    connections, entry = play(go())
    assert connections == 2 and values == [1, 4, 8] and result_files(entry)


def test_an_end_that_came_while_the_websocket_was_down_is_found() -> None:
    async def run(fake: FakeComfy, prompt_id: str) -> None:
        await fake.wait_for_socket()
        await fake.drop()
        await fake.end(prompt_id, **{"2": {"images": [{"filename": "a.mp4", "type": "output"}]}})

    async def go() -> dict[str, Any]:
        async with FakeComfy(run) as fake, Client(fake.url) as client:
            return await client.follow(await client.queue(WORKFLOW), WORKFLOW)

    assert result_files(play(go()))


def test_a_lost_message_is_made_good_by_the_history(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE", 0.05)

    async def run(fake: FakeComfy, prompt_id: str) -> None:
        await fake.wait_for_socket()
        await asyncio.sleep(0.1)
        sockets, fake.sockets = fake.sockets, []
        await fake.end(prompt_id, **{"2": {"images": [{"filename": "a.mp4", "type": "output"}]}})
        fake.sockets = sockets

    async def go() -> dict[str, Any]:
        async with FakeComfy(run) as fake, Client(fake.url) as client:
            return await client.follow(await client.queue(WORKFLOW), WORKFLOW)

    assert result_files(play(go()))


@pytest.mark.parametrize("socket", [403, 404, 426, 500, "closes", "hangs", "garbage"])
def test_without_a_websocket_the_history_tells_of_the_end(socket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that lets none through, whatever it says instead: the finished video was reported as lost."""
    monkeypatch.setattr(module, "SILENCE", 0.2)
    monkeypatch.setattr(module, "POLL", 0.05)
    said: list[str] = []

    async def run(fake: FakeComfy, prompt_id: str) -> None:
        await asyncio.sleep(0.6)  # longer than the patience
        await fake.end(prompt_id, **{"2": {"images": [{"filename": "a.mp4", "type": "output"}]}})

    async def go() -> dict[str, Any]:
        async with FakeComfy(run) as fake, Client(fake.url, patience=0.3, say=said.append) as client:
            fake.socket = socket
            return await client.follow(await client.queue(WORKFLOW), WORKFLOW)

    assert result_files(play(go()))
    assert len(said) == (1 if isinstance(socket, int) else 0)


def test_without_a_websocket_an_error_is_told_as_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL", 0.05)

    async def run(fake: FakeComfy, prompt_id: str) -> None:
        await asyncio.sleep(0.1)
        data = {"node_id": "2", "node_type": "Sampler", "exception_type": "ValueError", "exception_message": "too wide"}
        await fake.end(prompt_id, [["execution_error", data]])

    assert "Sample it" in (text := error_of(run, socket=403)) and "too wide" in text


def test_a_proxy_whose_server_is_away_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL", 0.05)

    async def run(fake: FakeComfy, prompt_id: str) -> None:
        fake.away = 3
        await fake.end(prompt_id, **{"2": {"images": [{"filename": "a.mp4", "type": "output"}]}})

    async def go() -> dict[str, Any]:
        async with FakeComfy(run) as fake, Client(fake.url) as client:
            fake.socket = 502
            return await client.follow(await client.queue(WORKFLOW), WORKFLOW)

    assert result_files(play(go()))


def test_a_server_that_dies_is_given_up_after_the_patience() -> None:
    async def go() -> float:
        fake = FakeComfy(lambda fake, prompt_id: asyncio.sleep(60))
        async with fake, Client(fake.url, patience=0.5) as client:
            prompt_id = await client.queue(WORKFLOW)
            following = asyncio.ensure_future(client.follow(prompt_id, WORKFLOW))
            await fake.wait_for_socket()
            begun = time.monotonic()
            await fake.die()
            with pytest.raises(ServerError, match="out of reach"):
                await following
            return time.monotonic() - begun

    assert 0.4 < play(go()) < 5


def test_a_process_of_ours_that_ended_is_told_at_once() -> None:
    def check() -> None:
        raise ServerError("it has ended (signal SIGKILL)")

    async def go() -> None:
        fake = FakeComfy(lambda fake, prompt_id: asyncio.sleep(60))
        async with fake, Client(fake.url, check=check) as client:
            prompt_id = await client.queue(WORKFLOW)
            following = asyncio.ensure_future(client.follow(prompt_id, WORKFLOW))
            await fake.wait_for_socket()
            await fake.die()
            await asyncio.wait_for(following, 5)

    with pytest.raises(ServerError, match="SIGKILL"):
        play(go())


def test_a_prompt_that_a_restart_forgot() -> None:
    async def run(fake: FakeComfy, prompt_id: str) -> None:
        await fake.wait_for_socket()
        fake.running.clear()
        await fake.drop()

    assert "no longer knows" in error_of(run)


def test_nobody_there_and_somebody_else_there() -> None:
    async def nobody() -> None:
        async with Client("127.0.0.1:9") as client:
            await client.system()

    with pytest.raises(ServerError, match="no answer from ComfyUI at http://127.0.0.1:9"):
        play(nobody())

    async def other() -> None:
        async def hello(_: web.Request) -> web.Response:
            return web.Response(text="<html>hello")

        app = web.Application()
        app.router.add_get("/system_stats", hello)
        async with TestServer(app) as server, Client(str(server.make_url(""))) as client:
            await client.system()

    with pytest.raises(ServerError, match="is not a ComfyUI"):
        play(other())


def test_cancel_takes_back_what_waits_and_interrupts_what_runs() -> None:
    async def go() -> None:
        async def run(fake: FakeComfy, prompt_id: str) -> None:
            await asyncio.wait_for(fake.interruption.wait(), 5)

        async with FakeComfy(run) as fake, Client(fake.url) as client:
            first, second = await client.queue(WORKFLOW), await client.queue(WORKFLOW)
            while first not in fake.running:
                await asyncio.sleep(0.005)
            await client.cancel(first, second)
            assert fake.interrupted == [first] and second in fake.deleted and not fake.pending

    play(go())


def test_a_download_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    async def go() -> None:
        async with FakeComfy() as fake, Client(fake.url) as client:
            fake.cut = 1000
            await client.download({"filename": "a.mp4", "type": "output"}, tmp_path / "a.mp4")

    with pytest.raises(ServerError):
        play(go())
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_download_to_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    """The file that grows beside the target is a link to a device that is always full."""
    target = tmp_path / "a.mp4"
    (tmp_path / ".a.mp4.partial").symlink_to("/dev/full")

    async def go() -> None:
        async with FakeComfy() as fake, Client(fake.url) as client:
            await client.download({"filename": "a.mp4", "type": "output"}, target)

    with pytest.raises(HLWQError, match="the disk is full") as caught:
        play(go())
    assert caught.value.file == str(target) and caught.value.fix
    assert not list(tmp_path.iterdir())


def test_upload_gives_the_name_that_a_load_node_takes(tmp_path: Path) -> None:
    small, large = tmp_path / "start.png", tmp_path / "large.wav"
    small.write_bytes(b"picture")
    large.write_bytes(bytes(1_000_001))

    async def go() -> None:
        async with FakeComfy() as fake, Client(fake.url) as client:
            assert await client.upload(small) == "hlwq/start.png"
            assert fake.uploads == [("hlwq", "start.png", b"picture")]
            with pytest.raises(ServerError, match="max-upload-size"):
                await client.upload(large)
            with pytest.raises(InputError):
                await client.upload(tmp_path / "none.png")

    play(go())
