"""A small ComfyUI for tests of the client: the same routes and messages, and faults on demand."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

WORKFLOW = {
    "1": {"class_type": "Loader", "inputs": {"file": "a.safetensors"}, "_meta": {"title": "Load it"}},
    "2": {"class_type": "Sampler", "inputs": {"model": ["1", 0], "seed": 3}, "_meta": {"title": "Sample it"}},
}

INFO = {
    "Loader": {"input": {"required": {"file": [["a.safetensors", "b.safetensors"], {}]}}},
    "Sampler": {"input": {"required": {"model": ["MODEL", {}], "seed": ["INT", {}]}}},
    "PreviewAny": {"input": {"required": {"source": ["*", {}]}}},
}

Play = Callable[["FakeComfy", str], Awaitable[None]]


class FakeComfy:
    """Use it as `async with FakeComfy(play) as fake`; `play(fake, prompt_id)` runs for every prompt, in order."""

    def __init__(self, play: Play | None = None, middlewares: Sequence[Any] = (), tls: ssl.SSLContext | None = None):
        self.middlewares, self.tls = middlewares, tls
        self.play = play or finish
        self.info: dict[str, Any] = dict(INFO)
        self.refuse: dict[str, Any] | None = None
        self.warn: dict[str, Any] = {}
        self.files: dict[str, bytes] = {"a.mp4": b"film" * 1000}
        self.cut = 0
        self.sockets: list[web.WebSocketResponse] = []
        self.connections = 0
        self.socket: str | int = "open"  # or a status that refuses it, "closes", "hangs", "garbage"
        self.away = 0  # so many questions are answered as a proxy answers whose server is away
        self.asked = False
        self.pending: list[str] = []
        self.running: list[str] = []
        self.history: dict[str, dict[str, Any]] = {}
        self.prompts: dict[str, dict[str, Any]] = {}
        self.deleted: list[str] = []
        self.interrupted: list[str] = []
        self.uploads: list[tuple[str, str, bytes]] = []
        self.interruption = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> FakeComfy:
        app = web.Application(middlewares=self.middlewares)
        app.add_routes(
            [
                web.get("/system_stats", self._stats),
                web.get("/object_info/{name}", self._object_info),
                web.post("/prompt", self._prompt),
                web.get("/queue", self._queue),
                web.post("/queue", self._delete),
                web.post("/interrupt", self._interrupt),
                web.get("/history/{id}", self._history),
                web.post("/upload/image", self._upload),
                web.get("/view", self._view),
                web.get("/ws", self._ws),
            ]
        )
        self.server = TestServer(app)
        await self.server.start_server(ssl=self.tls)
        self.url = str(self.server.make_url("")).rstrip("/")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.die()

    async def die(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self.drop()
        await self.server.close()

    async def drop(self) -> None:
        """Close the websockets, as a proxy or a bad network does."""
        for ws in list(self.sockets):
            await ws.close()
        self.sockets.clear()

    async def send(self, kind: str, prompt_id: str, **data: Any) -> None:
        for ws in [ws for ws in self.sockets if not ws.closed]:
            await ws.send_json({"type": kind, "data": {"prompt_id": prompt_id, **data}})

    async def progress(self, prompt_id: str, node: str, value: int, most: int, state: str = "running") -> None:
        shown = {"value": value, "max": most, "state": state, "display_node_id": node}
        await self.send("progress_state", prompt_id, nodes={node: shown})

    async def end(self, prompt_id: str, messages: list[Any] = (), **outputs: Any) -> None:  # type: ignore[assignment]
        """Put a prompt into the history and say that it has ended."""
        self.running = [p for p in self.running if p != prompt_id]
        state = "error" if messages else "success"
        self.history[prompt_id] = {"outputs": outputs, "status": {"status_str": state, "messages": list(messages)}}
        await self.send("executing", prompt_id, node=None)

    async def wait_for_socket(self) -> None:
        """Until a client listens: it has connected, and found in the queue that its prompt has not ended."""
        while not (self.sockets and self.asked):
            await asyncio.sleep(0.005)

    # ---- routes ----

    async def _stats(self, _: web.Request) -> web.Response:
        return web.json_response({"system": {"comfyui_version": "fake"}, "devices": []})

    async def _object_info(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        return web.json_response({name: self.info[name]} if name in self.info else {})

    async def _prompt(self, request: web.Request) -> web.Response:
        if self.refuse is not None:
            return web.json_response(self.refuse, status=400)
        body = await request.json()
        prompt_id = body.get("prompt_id") or str(uuid.uuid4())
        self.prompts[prompt_id] = body["prompt"]
        self.pending.append(prompt_id)
        self._tasks.append(asyncio.ensure_future(self._run(prompt_id)))
        return web.json_response({"prompt_id": prompt_id, "number": 0, "node_errors": self.warn})

    async def _run(self, prompt_id: str) -> None:
        async with self._turn:
            if prompt_id in self.pending:
                self.pending.remove(prompt_id)
                self.running.append(prompt_id)
                await self.play(self, prompt_id)

    async def _queue(self, _: web.Request) -> web.Response:
        self.asked = True
        return web.json_response(
            {"queue_running": [[0, p] for p in self.running], "queue_pending": [[0, p] for p in self.pending]}
        )

    async def _delete(self, request: web.Request) -> web.Response:
        ids = (await request.json())["delete"]
        self.deleted += ids
        self.pending = [p for p in self.pending if p not in ids]
        return web.Response()

    async def _interrupt(self, request: web.Request) -> web.Response:
        prompt_id = (await request.json())["prompt_id"]
        if prompt_id in self.running:
            self.interrupted.append(prompt_id)
            self.interruption.set()
        return web.Response()

    async def _history(self, request: web.Request) -> web.Response:
        if self.away:
            self.away -= 1
            return web.Response(status=502 + self.away % 3)
        prompt_id = request.match_info["id"]
        return web.json_response({prompt_id: self.history[prompt_id]} if prompt_id in self.history else {})

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        image = form["image"]
        content = image.file.read()  # type: ignore[union-attr]
        self.uploads.append((str(form["subfolder"]), image.filename, content))  # type: ignore[union-attr]
        if len(content) > 1_000_000:
            return web.Response(status=413)
        return web.json_response({"name": image.filename, "subfolder": form["subfolder"], "type": "input"})  # type: ignore[union-attr]

    async def _view(self, request: web.Request) -> web.StreamResponse:
        content = self.files.get(request.query["filename"])
        if content is None:
            return web.Response(status=404)
        answer = web.StreamResponse(headers={"Content-Length": str(len(content))})
        await answer.prepare(request)
        await answer.write(content[: len(content) - self.cut])
        if self.cut and request.transport is not None:
            request.transport.close()
        return answer

    async def _ws(self, request: web.Request) -> web.StreamResponse:
        if isinstance(self.socket, int):
            return web.Response(status=self.socket)
        if self.socket == "hangs":
            await asyncio.sleep(60)
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        self.connections += 1
        self.asked = False
        if self.socket == "closes":
            await ws.close()
            return ws
        if self.socket == "garbage":
            for text in ("", "x", "[]", "5", '{"type": 5, "data": 7}', '{"data": {}}', "[" * 100_000):
                await ws.send_str(text)
        self.sockets.append(ws)
        await ws.send_json({"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 0}}}})
        async for _ in ws:
            pass
        with contextlib.suppress(ValueError):
            self.sockets.remove(ws)
        return ws


async def finish(fake: FakeComfy, prompt_id: str) -> None:
    """A prompt that goes well: one node cached, one with progress, one file."""
    await fake.wait_for_socket()
    await fake.send("execution_cached", prompt_id, nodes=["1"])
    await fake.send("executing", prompt_id, node="2", display_node="2")
    await fake.progress(prompt_id, "2", 4, 8)
    await fake.progress(prompt_id, "2", 8, 8, "finished")
    result = {"filename": "a.mp4", "subfolder": "video", "type": "output"}
    await fake.end(prompt_id, **{"2": {"images": [result], "animated": [True]}})
