"""One job on one ComfyUI: queued, followed to its end, its files fetched. What fails is told apart: the job, the worker, our disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..client import graph
from ..client.client import Client, messages_of, result_files
from ..client.generate import Request, prepare
from ..client.graph import Nodes
from ..client.node_progress import NodeProgress
from ..errors import HLWQError, InputError, ServerError, WorkError
from .results import Arrived

Say = Callable[[str], None]
Watcher = Callable[[Nodes], NodeProgress]


class WorkerLost(Exception):
    """A worker died, is out of reach, or forgot its queue: the job is as good as it was."""

    def __init__(self, error: HLWQError):
        super().__init__(str(error))
        self.error = error


class Unwritable(Exception):
    """Our own disk takes nothing more: no job can be made."""

    def __init__(self, error: HLWQError):
        super().__init__(str(error))
        self.error = error


def quiet(nodes: Nodes) -> NodeProgress:
    """Keeps the times of the nodes, shows nothing."""
    return NodeProgress(nodes, quiet=True)


async def make(
    client: Client,
    request: Request,
    part: Callable[[], Path],
    *,
    queued: str | None = None,
    queuing: Callable[[str], None] = lambda prompt_id: None,
    watcher: Watcher = quiet,
    say: Say = lambda line: None,
) -> Arrived:
    """Make what a request asks for. Stopped, it leaves the prompt where it is: whoever stops it knows its id.

    Args:
        part: gives a path for each file.
        queued: the prompt's id where an earlier call has queued this already; it is followed if the server knows it.
        queuing: told the prompt's id before it is queued.
        watcher: shows the nodes' progress.

    Raises:
        HLWQError: the job failed.
        WorkerLost, Unwritable: something else did.
    """
    with _told_apart():
        nodes = await prepare(client, request, say)
        digest = workflow_digest(nodes)
        report = graph.add_report(nodes)
        begun = time.monotonic()
        if queued is None or not await client.has(queued):
            queued = str(uuid.uuid4())
            queuing(queued)
            given = await client.queue(nodes, prompt_id=queued)
            if given != queued:  # a server that gives names of its own
                queued = given
                queuing(queued)
        with watcher(nodes) as watch:
            entry = await client.follow(queued, nodes, watch)
        seconds = run_seconds(entry) or time.monotonic() - begun
        files = result_files(entry)
        if not files:
            raise WorkError("the workflow ended without a file", fix="it needs a node that saves its result")
        arrived = Arrived([], seconds, queued, digest)
        arrived.node_seconds = {graph.name_of(nodes, i): s for i, s in watch.seconds.items() if i in nodes}
        if report is not None:
            arrived.report = _text_of(entry, report)
        for file in files:
            arrived.parts.append(await _fetch(client, file, part()))
    return arrived


@contextlib.contextmanager
def _told_apart() -> Any:
    try:
        yield
    except WorkError:
        raise
    except ServerError as error:
        raise WorkerLost(error) from error


async def _fetch(client: Client, file: dict[str, Any], path: Path) -> tuple[Path, str, str]:
    digest = hashlib.sha256()
    try:
        await client.download(file, path, digest)
    except InputError as error:
        raise Unwritable(error) from error
    except WorkError:
        # It is in the history and not in the folder: the nodes that made it must not be taken for done the next time.
        with contextlib.suppress(HLWQError):
            await client.free()
        raise
    return path, str(file["filename"]), digest.hexdigest()


def workflow_digest(nodes: Nodes) -> str:
    """sha256 of a workflow as it is queued, of its JSON with sorted keys."""
    return hashlib.sha256(json.dumps(nodes, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def run_seconds(entry: dict[str, Any]) -> float | None:
    """How long a prompt ran, by the server's own clock; None where its history does not say."""
    times = {kind: data.get("timestamp") for kind, data in messages_of(entry)}
    start, end = times.get("execution_start"), times.get("execution_success")
    if type(start) in (int, float) and type(end) in (int, float) and end >= start:  # type: ignore[operator]
        return (end - start) / 1000  # type: ignore[operator]
    return None


def _text_of(entry: dict[str, Any], node_id: str) -> str:
    outputs = entry.get("outputs")
    shown = outputs.get(node_id) if isinstance(outputs, dict) else None
    lines = shown.get("text") if isinstance(shown, dict) else None
    return "\n".join(map(str, lines)) if isinstance(lines, list) else ""
