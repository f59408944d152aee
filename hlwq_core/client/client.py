"""ComfyUI over HTTP and websocket: upload, queue, follow, fetch.

The routes are those of ComfyUI's own `server.py` (`/prompt`, `/history`, `/queue`, `/object_info`,
`/upload/image`, `/view`, `/interrupt`, `/ws`). The websocket only carries the news; what counts as the end
of a prompt is its entry in the history, so a connection that drops in between loses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from ..errors import HLWQError, InputError, ServerError, WorkError
from ..format.places import write_error
from . import graph
from .address import Address
from .complaints import failure, refusal, unknown_nodes
from .graph import Nodes

Workflow = Nodes
Watch = Callable[[str, dict[str, Any]], None]

SILENCE = 10.0  # seconds without a message after which the history is asked
POLL = 1.0  # seconds between two questions where there is no websocket
_LOST = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
# What a proxy says of a server that it cannot reach, or not now.
_AWAY = (429, 502, 503, 504)


def _words(error: BaseException) -> str:
    """What was lost, in words; aiohttp's own hold the whole address."""
    if isinstance(error, aiohttp.ClientResponseError):
        return f"{error.status} {error.message}".strip()
    return str(error).strip() or type(error).__name__


async def _no_redirect(*_: object) -> None:
    raise aiohttp.ClientError("it redirects to elsewhere")


class Client:
    """A connection to one ComfyUI; use it as `async with Client(url) as client`.

    Args:
        url: `http://host:port`, with or without the scheme; a path before ComfyUI's routes and a query are kept.
        headers: sent with every request, to this server alone: what it redirects to is an error. Nothing of them, of the query
            and of a password stands in any error.
        patience: seconds that the server may be out of reach before that is an error.
        check: called while the server is out of reach; raises if it is known to be gone for good
            (a process of our own that ended).
        say: takes a line when something works less well than it could.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        patience: float = 120.0,
        check: Callable[[], None] | None = None,
        say: Callable[[str], None] | None = None,
    ):
        self.address = Address(url, headers)
        self.url = self.address.shown
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
        user = self.address.user
        auth = aiohttp.BasicAuth(user, self.address.password or "") if user else None
        # A websocket's connection has no switch for it, and headers would go along to wherever it leads.
        trace = aiohttp.TraceConfig()
        trace.on_request_redirect.append(_no_redirect)
        self._session = aiohttp.ClientSession(
            timeout=timeout, headers=self.address.headers, auth=auth, trace_configs=[trace]
        )
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
        fix = "start ComfyUI or correct --server; without --server one is started for the call (--comfyui)"
        if isinstance(error, aiohttp.ClientSSLError):
            fix = (
                "if its certificate is of an authority of your own, let the variable SSL_CERT_FILE name that authority's "
                "certificate (a .pem file); else correct --server"
            )
        return ServerError(f"no answer from ComfyUI at {self.url}: {_words(error)}", fix=fix)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """A lost connection as an error, and no error with anything secret, also where a server repeats it."""
        try:
            yield
        except _LOST as error:
            self._check()
            lost = self._gone(error)
            self._hide(lost)
            raise lost from error
        except HLWQError as told:
            self._hide(told)
            raise

    def _hide(self, error: HLWQError) -> None:
        for name in ("what", "expected", "found", "fix"):
            if (value := getattr(error, name)) is not None:
                setattr(error, name, self.address.hide(str(value)))
        error.args = (str(error),)

    def _refuse_status(self, answer: aiohttp.ClientResponse, path: str) -> None:
        """An error for an answer that is not ComfyUI's own."""
        if answer.status in _AWAY:
            raise aiohttp.ClientError(f"{answer.status} {answer.reason}")
        if 300 <= answer.status < 400:
            where = answer.headers.get("Location", "").partition("?")[0]
            raise ServerError(
                f"{self.url}{path} redirects to {where or 'nowhere'}",
                fix="a gateway that wants a login, or the address has moved: correct --server or --header",
            )
        if answer.status in (401, 403, 407):
            raise ServerError(
                f"{self.url}{path} answered {answer.status} {answer.reason}",
                fix='it wants a password or a token: --header "Authorization: Bearer TOKEN", or --header @FILE',
            )

    async def get(self, path: str) -> Any:
        """GET a JSON route. A single failure is an error: the caller decides about patience."""
        with self._telling():
            try:
                async with self.session.get(self.address.url(path), allow_redirects=False) as answer:
                    self._refuse_status(answer, path)
                    if answer.status != 200:
                        raise ServerError(
                            f"{self.url}{path} answered {answer.status} {answer.reason}",
                            fix="look into the log of ComfyUI, which says more",
                        )
                    return await answer.json(content_type=None)
            except _LOST:  # a wrong certificate is a ValueError as well
                raise
            except (ValueError, RecursionError) as e:  # no JSON, or no text
                raise self._stranger() from e

    def _stranger(self) -> ServerError:
        return ServerError(f"what answers at {self.url} is not a ComfyUI", fix="correct --server")

    async def _post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        url = self.address.url(path)
        with self._telling():
            async with self.session.post(url, json=body, allow_redirects=False) as answer:
                self._refuse_status(answer, path)
                try:
                    text = await answer.text()
                    parsed = json.loads(text) if text else {}
                except (ValueError, RecursionError) as e:
                    if answer.status == 200:
                        raise self._stranger() from e
                    return answer.status, {"error": text.strip()[:500]}
                return answer.status, parsed if isinstance(parsed, dict) else {"error": str(parsed)[:500]}

    async def system(self) -> dict[str, Any]:
        """`/system_stats`: versions, devices, arguments; an error if there is no ComfyUI at the address."""
        stats = await self.get("/system_stats")
        if not isinstance(stats, dict) or "system" not in stats:
            raise self._stranger()
        return stats

    async def object_info(self, classes: list[str]) -> dict[str, dict[str, Any]]:
        """The description of each node class (asked once); unknown ones are all named in one error."""
        new = [c for c in dict.fromkeys(classes) if c not in self._info]
        answers = await asyncio.gather(*(self.get(f"/object_info/{quote(c, safe='')}") for c in new))
        for answer in answers:
            if not isinstance(answer, dict) or not all(isinstance(value, dict) for value in answer.values()):
                raise self._stranger()
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
        with opened as content, self._telling():
            form = aiohttp.FormData()
            form.add_field("image", content, filename=path.name)
            form.add_field("subfolder", subfolder)
            async with self.session.post(self.address.url("/upload/image"), data=form, allow_redirects=False) as answer:
                self._refuse_status(answer, "/upload/image")
                if answer.status == 413:
                    large = WorkError(
                        "ComfyUI does not take a file of this size",
                        file=path,
                        found=f"{path.stat().st_size / 2**20:.0f} MiB",
                        fix="start it with a larger --max-upload-size (in MB), or put the file into its "
                        "input folder yourself",
                    )
                    large.final = True
                    raise large
                if answer.status != 200:
                    raise ServerError(
                        f"the upload was answered {answer.status} {answer.reason}",
                        file=path,
                        fix="look into the log of ComfyUI, which says more; large files need its option --max-upload-size",
                    )
                try:
                    stored = await answer.json(content_type=None)
                    name, folder = str(stored["name"]), str(stored.get("subfolder") or "")
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
                    raise self._stranger() from e
        return f"{folder}/{name}" if folder else name

    # ---- prompts ----

    async def queue(self, workflow: Workflow, extra: dict[str, Any] | None = None, prompt_id: str | None = None) -> str:
        """Queue a workflow in API form; returns the prompt's id. A refusal names node, input and reason.

        Args:
            extra: the prompt's `extra_data`.
            prompt_id: a UUID to know the prompt by, also if the answer does not arrive; ComfyUI makes one if None.
        """
        body: dict[str, Any] = {"prompt": workflow, "client_id": self.client_id}
        if extra:
            body["extra_data"] = extra
        if prompt_id:
            body["prompt_id"] = prompt_id
        status, answer = await self._post("/prompt", body)
        # ComfyUI takes a prompt of which one output is fine and others are not; half a result is none.
        if status == 200 and not isinstance(answer.get("prompt_id"), str):
            raise self._stranger()
        if status != 200 or answer.get("node_errors"):
            if status == 200:
                with contextlib.suppress(HLWQError):  # the refusal is the error to tell
                    await self.cancel(answer["prompt_id"])
            if status >= 500:
                raise ServerError(
                    f"{self.url}/prompt answered {status}", fix="look into the log of ComfyUI, which says more"
                )
            refused = refusal(workflow, answer, self.url)
            self._hide(refused)
            raise refused
        return answer["prompt_id"]

    async def cancel(self, *prompt_ids: str) -> None:
        """Take prompts out of the queue and interrupt the one that runs; says nothing if there is none.

        Raises:
            ServerError: the server did not take them back.
        """
        told: list[tuple[str, dict[str, Any]]] = [("/queue", {"delete": list(prompt_ids)})]
        told += [("/interrupt", {"prompt_id": prompt_id}) for prompt_id in prompt_ids]
        for path, body in told:
            status, _ = await self._post(path, body)
            if status != 200:
                raise ServerError(
                    f"{self.url}{path} answered {status}", fix="look into the log of ComfyUI, which says more"
                )

    async def free(self) -> None:
        """Forget what nodes have made: they run again in the next prompt."""
        await self._post("/free", {"free_memory": True})

    async def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The entry of a prompt that has ended, or None while it waits or runs."""
        found = await self.get(f"/history/{prompt_id}")
        if not isinstance(found, dict):
            raise self._stranger()
        entry = found.get(prompt_id)
        if entry is not None and not isinstance(entry, dict):
            raise self._stranger()
        return entry

    async def waits(self, prompt_id: str) -> bool:
        """Whether a prompt is in the queue or runs."""
        queue = await self.get("/queue")
        try:
            return any(item[1] == prompt_id for item in queue["queue_running"] + queue["queue_pending"])
        except (KeyError, TypeError, IndexError) as error:
            raise self._stranger() from error

    async def has(self, prompt_id: str) -> bool:
        """Whether a prompt waits, runs, or has ended well here."""
        entry = await self.history(prompt_id)
        if entry is None and not await self.waits(prompt_id):
            entry = await self.history(prompt_id)  # it may have ended between the two questions
            if entry is None:
                return False
        try:
            self._judge(entry or {}, {}, None)
        except WorkError:
            return False
        return True

    async def _ended(self, prompt_id: str) -> dict[str, Any] | None:
        entry = await self.history(prompt_id)
        if entry is not None or await self.waits(prompt_id):
            return entry
        # It may have ended between the two questions.
        if (entry := await self.history(prompt_id)) is not None:
            return entry
        raise ServerError(
            f"ComfyUI at {self.url} no longer knows the prompt {prompt_id}",
            fix="it was taken out of the queue, or ComfyUI was restarted: queue it again",
        )

    async def _messages(self, prompt_id: str) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """The websocket's messages until it closes; `("silence", {})` whenever none comes for a while."""
        url = self.address.socket("/ws", {"clientId": self.client_id})
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
        with self._telling():
            return await self._follow(prompt_id, workflow, watch or (lambda kind, data: None))

    async def _follow(self, prompt_id: str, workflow: Workflow, watch: Watch) -> dict[str, Any]:
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
                    f"ComfyUI at {self.url} has been out of reach for {self.patience:.0f} s: "
                    f"{self.address.hide(_words(error))}",
                    fix="look at its log; a finished video is in its output folder",
                ) from error
            await asyncio.sleep(min(POLL, self.patience / 10))

    def _tell_polling(self, error: BaseException) -> None:
        if not self._said and isinstance(error, aiohttp.WSServerHandshakeError):
            self._said = True
            self._say(f"the websocket is refused ({error.status}): no progress is shown, the history tells of the end")

    def _judge(self, entry: dict[str, Any], workflow: Workflow, blocked: dict[str, Any] | None) -> dict[str, Any]:
        status = entry.get("status") or {}
        for kind, data in messages_of(entry):
            if kind == "execution_error":
                raise failure(workflow, data)
            if kind == "execution_interrupted":
                where = graph.name_of(workflow, str(data.get("node_id")))
                raise WorkError(f"the work was stopped in ComfyUI (at {where})", fix="queue it again")
        if blocked is not None:
            raise failure(workflow, blocked)
        if isinstance(status, dict) and status.get("status_str") == "error":
            raise WorkError("ComfyUI reports an error without a reason", fix="look at its log")
        return entry

    # ---- results ----

    async def download(
        self, result: dict[str, Any], target: str | os.PathLike[str], digest: hashlib._Hash | None = None
    ) -> Path:
        """Fetch one file of a history entry (`filename`, `subfolder`, `type`) to `target`, atomically.

        Args:
            digest: is given the bytes, as of `hashlib.sha256()`.
        """
        target = Path(target)
        partial = target.with_name(f".{target.name}.partial")
        wanted = {k: str(result.get(k) or "") for k in ("filename", "subfolder")}
        wanted["type"] = str(result.get("type") or "output")
        try:
            with self._telling():
                async with self.session.get(self.address.url("/view", wanted), allow_redirects=False) as answer:
                    self._refuse_status(answer, "/view")
                    if answer.status != 200:
                        raise WorkError(
                            f"ComfyUI does not give the file {wanted['filename']}: {answer.status} {answer.reason}",
                            fix="look for it in ComfyUI's output folder",
                        )
                    await _receive(answer, partial, target, digest)
            try:
                os.replace(partial, target)
            except OSError as e:
                raise write_error(target, e) from e
        finally:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                partial.unlink()
        return target


async def _receive(answer: aiohttp.ClientResponse, partial: Path, target: Path, digest: hashlib._Hash | None) -> None:
    """The body of an answer into a file, and on the disk."""
    try:
        out = partial.open("wb")
    except OSError as e:
        raise write_error(target, e) from e
    size = 0
    try:
        async for block in answer.content.iter_chunked(1 << 20):
            size += len(block)
            if digest is not None:
                digest.update(block)
            try:
                out.write(block)
            except OSError as e:  # of the file, not of the connection
                raise write_error(target, e) from e
        try:
            out.flush()
            os.fsync(out.fileno())
        except OSError as e:
            raise write_error(target, e) from e
    finally:
        with contextlib.suppress(OSError):  # what it could not write it tries again
            out.close()
    if answer.content_length is not None and size != answer.content_length:
        raise ServerError("the file arrived cut short", file=target, fix="run the command again")


def messages_of(entry: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What a history entry says of the run: `(kind, data)`, such as `execution_start` with its `timestamp` in ms."""
    status = entry.get("status")
    messages = status.get("messages") if isinstance(status, dict) else None
    found = []
    for message in messages if isinstance(messages, list) else []:
        if isinstance(message, (list, tuple)) and len(message) == 2 and isinstance(message[1], dict):
            found.append((str(message[0]), message[1]))
    return found


def result_files(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The files that a prompt wrote (`filename`, `subfolder`, `type`, `node`), previews in temp left out."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    outputs = entry.get("outputs")
    for node_id, output in (outputs if isinstance(outputs, dict) else {}).items():
        for items in output.values() if isinstance(output, dict) else ():
            for item in items if isinstance(items, list) else []:
                if not isinstance(item, dict) or item.get("type", "output") != "output":
                    continue
                name, folder = item.get("filename"), item.get("subfolder") or ""
                if isinstance(name, str) and name and isinstance(folder, str):
                    found.setdefault((folder, name), {**item, "node": node_id})
    return list(found.values())
