"""ComfyUI over HTTP and websocket: upload, queue, follow, fetch.

The routes are those of ComfyUI's own `server.py` (`/prompt`, `/history`, `/queue`, `/object_info`,
`/upload/image`, `/view`, `/interrupt`, `/ws`). The websocket only carries the news; what counts as the end
of a prompt is its entry in the history, so a connection that drops in between loses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from ..errors import InputError, ServerError
from ..format.writer import write_error
from . import graph

Workflow = dict[str, dict[str, Any]]
Watch = Callable[[str, dict[str, Any]], None]

SILENCE = 10.0  # seconds without a message after which the history is asked
POLL = 1.0  # seconds between two questions where there is no websocket
_LOST = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
# What a proxy says of a server that it cannot reach, or not now.
_AWAY = (429, 502, 503, 504)


def _where(workflow: Workflow, node_id: str, class_type: str | None) -> str:
    name = graph.name_of(workflow, node_id)
    kind = class_type or workflow.get(node_id, {}).get("class_type", "")
    return f"{name} (node {node_id})" if name == kind else f"{name} ({kind}, node {node_id})"


def _reason(error: dict[str, Any]) -> str:
    """One validation error of one input in a line."""
    kind, details = error.get("type"), str(error.get("details", ""))
    extra = error.get("extra_info") or {}
    name = extra.get("input_name")
    if kind == "required_input_missing":
        return f"the input {name!r} is missing"
    if kind == "value_not_in_list":
        config = extra.get("input_config")
        choices = config and (config[1].get("options") if isinstance(config[0], str) else config[0])
        if choices is None:
            return details
        listed = ", ".join(map(repr, choices)) if choices else "nothing: the folder is empty"
        return f"{name}: {extra.get('received_value')!r} is not there; there is {listed}"
    if kind in ("value_smaller_than_min", "value_bigger_than_max"):
        return f"{name}: {error.get('message')}"
    if kind == "custom_validation_failed":
        return details.replace(" - ", ": ", 1)
    message = error.get("message", kind)
    return f"{message}: {details}" if details else str(message)


def refusal(workflow: Workflow, answer: dict[str, Any], url: str) -> ServerError:
    """ComfyUI's answer 400 to /prompt, as an error that names each node by its title."""
    error = answer.get("error") or {}
    if isinstance(error, str):
        error = {"message": error}
    extra = error.get("extra_info") or {}
    if error.get("type") == "missing_node_type":
        return unknown_nodes([str(extra.get("class_type"))], url)
    lines = ["ComfyUI refused the workflow:"]
    for node_id, found in (answer.get("node_errors") or {}).items():
        where = _where(workflow, node_id, found.get("class_type"))
        lines += [f"  {where}: {_reason(e)}" for e in found.get("errors", [])]
    if len(lines) == 1:
        lines.append(f"  {error.get('message', 'no reason given')} {error.get('details', '')}".rstrip())
    return ServerError("\n".join(lines), fix='set the inputs named above (`--set "Title.input=value"`), then again')


def unknown_nodes(classes: list[str], url: str) -> ServerError:
    """The ComfyUI at `url` lacks nodes that the workflow uses."""
    ours = any(c.startswith("HLWQ") for c in classes)
    fix = (
        "put this pack into its custom_nodes folder (a link will do), restart it, and look for "
        "'IMPORT FAILED' in its log"
        if ours
        else "update ComfyUI, or install the custom nodes that the workflow was made with"
    )
    return ServerError(
        f"the ComfyUI at {url} does not know the node{'s' * (len(classes) > 1)} {', '.join(classes)}", fix=fix
    )


def failure(workflow: Workflow, data: dict[str, Any]) -> ServerError:
    """An `execution_error` message as an error: where, what, and what to do if that is known.

    A message of several lines is the pack's own (it says itself what to do) and is kept whole.
    """
    node_id = str(data.get("node_id"))
    message = str(data.get("exception_message", "")).strip()
    kind = str(data.get("exception_type", "")).rsplit(".", 1)[-1]
    lines = message.splitlines() or [kind]
    own = any(line.strip().startswith("what to do:") for line in lines)
    fix = None
    if not own:
        lines[0] = f"{kind}: {lines[0]}" if kind and kind != lines[0] else lines[0]
        frames = data.get("traceback") or []
        if frames:
            lines.append(f"raised in {frames[-1].strip().splitlines()[0]}")
        fix = "ComfyUI's log has the whole traceback"
        if "OutOfMemory" in kind or "out of memory" in message.lower():
            fix = "ask for a smaller or shorter video, or start ComfyUI with --lowvram"
    text = "\n".join("  " + line for line in lines)
    return ServerError(f"{_where(workflow, node_id, data.get('node_type'))} failed:\n{text}", fix=fix)


class Client:
    """A connection to one ComfyUI; use it as `async with Client(url) as client`.

    Args:
        url: `http://host:port`, with or without the scheme; a path before ComfyUI's routes is kept.
        patience: seconds that the server may be out of reach before that is an error.
        check: called while the server is out of reach; raises if it is known to be gone for good
            (a process of our own that ended).
        say: takes a line when something works less well than it could.
    """

    def __init__(
        self,
        url: str,
        *,
        patience: float = 120.0,
        check: Callable[[], None] | None = None,
        say: Callable[[str], None] | None = None,
    ):
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        self.patience = patience
        self.client_id = uuid.uuid4().hex
        self._check = check or (lambda: None)
        self._say = say or (lambda line: None)
        self._said = False
        self._info: dict[str, dict[str, Any]] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Client:
        # No limit on the whole of a request (uploads, downloads), one on each silence.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)
        self._session = aiohttp.ClientSession(timeout=timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("use the client as `async with Client(url)`")
        return self._session

    # ---- one request ----

    def _gone(self, error: BaseException) -> ServerError:
        reason = str(error).strip() or type(error).__name__
        return ServerError(
            f"no answer from ComfyUI at {self.url}: {reason}",
            fix="start ComfyUI or correct --server; without --server one is started for the call (--comfyui)",
        )

    async def get(self, path: str) -> Any:
        """GET a JSON route. A single failure is an error: the caller decides about patience."""
        try:
            async with self.session.get(self.url + path) as answer:
                if answer.status in _AWAY:
                    raise aiohttp.ClientError(f"{answer.status} {answer.reason}")
                if answer.status != 200:
                    raise ServerError(
                        f"{self.url}{path} answered {answer.status} {answer.reason}",
                        fix="look into the log of ComfyUI, which says more",
                    )
                return await answer.json(content_type=None)
        except ValueError as e:  # no JSON, or no text
            raise ServerError(f"what answers at {self.url} is not a ComfyUI", fix="correct --server") from e
        except _LOST as e:
            self._check()
            raise self._gone(e) from e

    async def _post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        try:
            async with self.session.post(self.url + path, json=body) as answer:
                text = await answer.text()
                try:
                    return answer.status, json.loads(text) if text else {}
                except json.JSONDecodeError:
                    return answer.status, {"error": text.strip()[:500]}
        except _LOST as e:
            self._check()
            raise self._gone(e) from e

    async def system(self) -> dict[str, Any]:
        """`/system_stats`: versions, devices, arguments; an error if there is no ComfyUI at the address."""
        stats = await self.get("/system_stats")
        if not isinstance(stats, dict) or "system" not in stats:
            raise ServerError(f"what answers at {self.url} is not a ComfyUI", fix="correct --server")
        return stats

    async def object_info(self, classes: list[str]) -> dict[str, dict[str, Any]]:
        """The description of each node class (asked once); unknown ones are all named in one error."""
        new = [c for c in dict.fromkeys(classes) if c not in self._info]
        answers = await asyncio.gather(*(self.get(f"/object_info/{quote(c, safe='')}") for c in new))
        for answer in answers:
            self._info.update(answer)
        if missing := [c for c in new if c not in self._info]:
            raise unknown_nodes(missing, self.url)
        return {c: self._info[c] for c in classes}

    async def upload(self, path: str | os.PathLike[str], subfolder: str = "hlwq") -> str:
        """Put an image or a sound file into ComfyUI's input folder; returns the name that a Load node takes.

        ComfyUI takes every file by the same route and gives another name if it has one of that name
        with other content.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError("there is no such file to upload", file=path, fix="correct the path")
        try:
            opened = path.open("rb")
        except OSError as e:
            raise InputError("the file cannot be read", file=path, found=e.strerror or e, fix="correct the path") from e
        with opened as content:
            form = aiohttp.FormData()
            form.add_field("image", content, filename=path.name)
            form.add_field("subfolder", subfolder)
            try:
                async with self.session.post(self.url + "/upload/image", data=form) as answer:
                    if answer.status == 413:
                        raise ServerError(
                            "ComfyUI does not take a file of this size",
                            file=path,
                            found=f"{path.stat().st_size / 2**20:.0f} MiB",
                            fix="start it with a larger --max-upload-size (in MB), or put the file into its "
                            "input folder yourself",
                        )
                    if answer.status != 200:
                        raise ServerError(
                            f"the upload was answered {answer.status} {answer.reason}",
                            file=path,
                            fix="look into the log of ComfyUI, which says more; large files need its option --max-upload-size",
                        )
                    stored = await answer.json()
            except _LOST as e:
                self._check()
                raise self._gone(e) from e
        return f"{stored['subfolder']}/{stored['name']}" if stored.get("subfolder") else stored["name"]

    # ---- prompts ----

    async def queue(self, workflow: Workflow, extra: dict[str, Any] | None = None) -> str:
        """Queue a workflow in API form; returns the prompt's id. A refusal names node, input and reason."""
        body: dict[str, Any] = {"prompt": workflow, "client_id": self.client_id}
        if extra:
            body["extra_data"] = extra
        status, answer = await self._post("/prompt", body)
        # ComfyUI takes a prompt of which one output is fine and others are not; half a result is none.
        if status != 200 or answer.get("node_errors"):
            if status == 200:
                await self.cancel(answer["prompt_id"])
            raise refusal(workflow, answer, self.url)
        return answer["prompt_id"]

    async def cancel(self, *prompt_ids: str) -> None:
        """Take prompts out of the queue and interrupt the one that runs; says nothing if there is none."""
        await self._post("/queue", {"delete": list(prompt_ids)})
        for prompt_id in prompt_ids:
            await self._post("/interrupt", {"prompt_id": prompt_id})

    async def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The entry of a prompt that has ended, or None while it waits or runs."""
        found = await self.get(f"/history/{prompt_id}")
        return found.get(prompt_id) if isinstance(found, dict) else None

    async def _ended(self, prompt_id: str) -> dict[str, Any] | None:
        entry = await self.history(prompt_id)
        if entry is not None:
            return entry
        queue = await self.get("/queue")
        try:
            waits = any(item[1] == prompt_id for item in queue["queue_running"] + queue["queue_pending"])
        except (KeyError, TypeError, IndexError) as error:
            raise ServerError(f"what answers at {self.url} is not a ComfyUI", fix="correct --server") from error
        if waits:
            return None
        # It may have ended between the two questions.
        if (entry := await self.history(prompt_id)) is not None:
            return entry
        raise ServerError(
            f"ComfyUI at {self.url} no longer knows the prompt {prompt_id}",
            fix="it was taken out of the queue, or ComfyUI was restarted: queue it again",
        )

    async def _messages(self, prompt_id: str) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """The websocket's messages until it closes; `("silence", {})` whenever none comes for a while."""
        url = f"{self.url}/ws?clientId={self.client_id}".replace("http", "ws", 1)
        connecting = self.session.ws_connect(url, max_msg_size=0, timeout=aiohttp.ClientWSTimeout(ws_close=2))
        async with await asyncio.wait_for(connecting, SILENCE) as ws:
            yield "connected", {}
            while True:
                try:
                    message = await ws.receive(timeout=SILENCE)
                except asyncio.TimeoutError:
                    yield "silence", {}
                    continue
                if message.type is aiohttp.WSMsgType.TEXT:
                    try:
                        parsed = json.loads(message.data)
                        kind, data = parsed["type"], parsed.get("data") or {}
                        # After a reconnect ComfyUI repeats `executing` without a prompt's id: not for us.
                        ours = data.get("prompt_id") == prompt_id
                    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                        continue  # of a custom node, in a form of its own
                    if ours:
                        yield kind, data
                elif message.type is not aiohttp.WSMsgType.BINARY:  # binary: preview pictures
                    return

    async def follow(self, prompt_id: str, workflow: Workflow, watch: Watch | None = None) -> dict[str, Any]:
        """Wait for the end of a prompt; returns its history entry. Where the websocket is refused, the history is asked.

        Args:
            watch: called with each message about this prompt (`progress_state`, `executing`,
                `execution_cached`, …) as `(type, data)`.

        Raises:
            ServerError: the prompt failed, was stopped by somebody, is unknown, or the server is gone.
        """
        watch = watch or (lambda kind, data: None)
        blocked: dict[str, Any] | None = None
        lost: float | None = None
        while True:
            try:
                async with contextlib.aclosing(self._messages(prompt_id)) as messages:
                    async for kind, data in messages:
                        if kind == "execution_error" and data.get("exception_type") == "ExecutionBlocked":
                            blocked = data  # not in the history
                        over = kind == "executing" and data.get("node") is None
                        if over or kind in ("connected", "silence"):
                            if (entry := await self._ended(prompt_id)) is not None:
                                return self._judge(entry, workflow, blocked)
                        lost = None
                        if kind not in ("connected", "silence"):
                            watch(kind, data)
                error: BaseException = ConnectionError("the websocket was closed")
            except _LOST as e:
                error = e
            except ServerError as e:
                if not isinstance(e.__cause__, _LOST):
                    raise
                error = e.__cause__
            self._check()
            try:
                if (entry := await self._ended(prompt_id)) is not None:
                    return self._judge(entry, workflow, blocked)
                self._tell_polling(error)
                lost = None
            except ServerError as e:
                if not isinstance(e.__cause__, _LOST):
                    raise
                error = e.__cause__
            lost = lost or time.monotonic()
            if time.monotonic() - lost > self.patience:
                raise ServerError(
                    f"ComfyUI at {self.url} has been out of reach for {self.patience:.0f} s: {error}",
                    fix="look at its log; a finished video is in its output folder",
                ) from error
            await asyncio.sleep(min(POLL, self.patience / 10))

    def _tell_polling(self, error: BaseException) -> None:
        if not self._said and isinstance(error, aiohttp.WSServerHandshakeError):
            self._said = True
            self._say(f"the websocket is refused ({error.status}): no progress is shown, the history tells of the end")

    def _judge(self, entry: dict[str, Any], workflow: Workflow, blocked: dict[str, Any] | None) -> dict[str, Any]:
        status = entry.get("status") or {}
        for kind, data in status.get("messages", []):
            if kind == "execution_error":
                raise failure(workflow, data)
            if kind == "execution_interrupted":
                where = graph.name_of(workflow, str(data.get("node_id")))
                raise ServerError(f"the work was stopped in ComfyUI (at {where})", fix="queue it again")
        if blocked is not None:
            raise failure(workflow, blocked)
        if status.get("status_str") == "error":
            raise ServerError("ComfyUI reports an error without a reason", fix="look at its log")
        return entry

    # ---- results ----

    async def download(self, result: dict[str, Any], target: str | os.PathLike[str]) -> Path:
        """Fetch one file of a history entry (`filename`, `subfolder`, `type`) to `target`, atomically."""
        target = Path(target)
        partial = target.with_name(f".{target.name}.partial")
        wanted = {k: result.get(k) or "" for k in ("filename", "subfolder")}
        wanted["type"] = result.get("type") or "output"
        try:
            async with self.session.get(self.url + "/view", params=wanted) as answer:
                if answer.status != 200:
                    raise ServerError(
                        f"ComfyUI does not give the file {wanted['filename']}: {answer.status} {answer.reason}",
                        fix="look for it in ComfyUI's output folder",
                    )
                with partial.open("wb") as out:
                    async for block in answer.content.iter_chunked(1 << 20):
                        out.write(block)
                    out.flush()
                    os.fsync(out.fileno())
                if answer.content_length is not None and partial.stat().st_size != answer.content_length:
                    raise ServerError("the file arrived cut short", file=target, fix="run the command again")
            os.replace(partial, target)
        except (aiohttp.ClientError, asyncio.TimeoutError) as e:
            self._check()
            raise self._gone(e) from e
        except OSError as e:  # of the file, not of the connection
            raise write_error(target, e) from e
        finally:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                partial.unlink()
        return target


def result_files(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The files that a prompt wrote (`filename`, `subfolder`, `type`, `node`), previews in temp left out."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for node_id, output in (entry.get("outputs") or {}).items():
        for items in output.values():
            for item in items if isinstance(items, list) else []:
                if isinstance(item, dict) and item.get("filename") and item.get("type", "output") == "output":
                    found.setdefault((item.get("subfolder", ""), item["filename"]), {**item, "node": node_id})
    return list(found.values())
