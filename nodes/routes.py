"""What the front end asks the server: GET /hlwq/checkpoint, /hlwq/coverage and /hlwq/published, POST /hlwq/verify,
/hlwq/download, /hlwq/cancel and /hlwq/memory.

Only names that the pack itself offers are taken, never paths. Long work runs in a thread and reports through the event
`hlwq.job`: `{job, kind, state: running|done|failed|cancelled, text, done, total}`.
"""

from __future__ import annotations

import asyncio
import functools
import io
import itertools
import json
import logging
import math
import re
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web
from server import PromptServer

from ..hlwq_core import __version__, backends
from ..hlwq_core.checkpoints.checkpoint import Checkpoint, open_checkpoint
from ..hlwq_core.checkpoints.completeness import Whole, whole
from ..hlwq_core.errors import FormatError, HLWQError, InputError
from ..hlwq_core.models import families
from ..hlwq_core.tools import download, inspect, verify
from . import compat, listing, locations, memory
from .compat import origin
from .model_loading import refuse_unloadable

log = logging.getLogger("hlwq")

EVENT = "hlwq.job"
# Of what the lists of models pass over, so many are shown; the log has more.
_SHOWN = 10
_SECONDS_BETWEEN_EVENTS = 0.2


class Cancelled(Exception):
    """The user pressed Cancel."""


class Job:
    """One piece of long work in a thread of its own; `tick` reports progress and stops it when cancelled."""

    _numbers = itertools.count(1)

    def __init__(self, kind: str, target: str):
        self.id = f"{kind}-{next(self._numbers)}"
        self.kind = kind
        self.target = target
        self._cancelled = threading.Event()
        self._told = 0.0

    def cancel(self) -> None:
        self._cancelled.set()

    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def tell(self, state: str, text: str, done: float = 0, total: float = 0) -> None:
        event = {"job": self.id, "kind": self.kind, "state": state, "text": text, "done": done, "total": total}
        PromptServer.instance.send_sync(EVENT, event)

    def tick(self, text: str, done: float, total: float) -> None:
        if self.cancelled():
            raise Cancelled
        if time.monotonic() - self._told >= _SECONDS_BETWEEN_EVENTS:
            self._told = time.monotonic()
            self.tell("running", text, done, total)

    def run(self, work: Callable[[Job], str]) -> None:
        try:
            text = work(self)
        except Cancelled:
            self.tell("cancelled", "Cancelled.")
        except HLWQError as error:
            self.tell("failed", str(error))
        except Exception as error:
            log.exception("HLWQ: %s of %s failed", self.kind, self.target)
            self.tell("failed", f"{type(error).__name__}: {error}")
        else:
            self.tell("done", text)
        finally:
            _jobs.pop(self.id, None)


_jobs: dict[str, Job] = {}


def _start(kind: str, target: str, work: Callable[[Job], str]) -> Job:
    for job in _jobs.values():
        if (job.kind, job.target) == (kind, target):
            return job  # pressed twice: watch the one that runs
    job = _jobs.setdefault((new := Job(kind, target)).id, new)
    threading.Thread(target=job.run, args=(work,), name=f"hlwq-{job.id}", daemon=True).start()
    return job


# ---- the report ------------------------------------------------------------------------------------------------------


def report(label: str) -> dict[str, Any]:
    """What a checkpoint is, from its headers, as web/panel.js shows it."""
    if not label:
        raise InputError(
            "there is no HLWQ checkpoint in the model folders",
            expected="a folder under models/hlwq with the published files",
            found="; ".join(["none", *_not_listed()]),
            fix="download one, or move yours there and press R",
        )
    path = locations.checkpoint(label)
    ckpt = open_checkpoint(path)
    found = ckpt.report()
    names = [*ckpt.names(), *ckpt.plain_names()]
    result = whole(ckpt)
    missing = result.missing
    problem = _problem(path, result)
    blocks = sorted({int(match[1]) for name in missing if (match := _BLOCK.search(name))})
    return {
        "version": __version__,
        "name": label,
        "variant": " + ".join(sorted(found["variants"])),
        "bits": "/".join(sorted(found["bits"])),
        "files": found["files"] + len(ckpt.upscalers),
        "size_bytes": sum(file.stat().st_size for file in (*ckpt.files, *ckpt.upscalers)),
        "quantized": found["quantized"],
        "plain": found["plain"],
        "expected": len(result.names),
        "model": result.model,
        "family": result.family.name if result.family else None,
        "other_size": result.other_size,
        "complete": result.complete and problem is None,
        "problem": problem,
        "absent": [{"name": part.name, "instead": part.instead} for part in result.absent],
        "missing": len(missing),
        "missing_names": missing[:5],
        "missing_blocks": blocks,
        "coverage": bool(missing),
        "vram": _memory(ckpt, names),
        "backend": _backend(),
        "fast": _fast(),
        "not_listed": _not_listed(),
        "hypotheses": inspect.inspect(path).hypotheses if missing else [],
        "repository": families.repositories()[0],
        "fixes": ["download", "repair", "verify"] if missing else ["verify"],
    }


def _problem(path: Path, result: Whole) -> str | None:
    """Why the loader would refuse it."""
    try:
        refuse_unloadable(path, result)
    except HLWQError as error:
        return error.what
    return None


def _not_listed() -> list[str]:
    lines = listing.not_listed()
    more = [f"{len(lines) - _SHOWN:,} more, see ComfyUI's log"] if len(lines) > _SHOWN else []
    return lines[:_SHOWN] + more


_BLOCK = re.compile(r"\btransformer_blocks\.(\d+)\.")


def _memory(ckpt: Checkpoint, names: list[str]) -> dict[str, Any]:
    """Bytes of the diffusion model's weights as they stay in memory, one decoded layer included, and the card's."""
    prefix = compat.unet_prefix(names)
    layers = [ckpt.info(name) for name in ckpt.names() if name.startswith(prefix)]
    plain = [ckpt.plain_info(name) for name in ckpt.plain_names() if name.startswith(prefix)]
    scratch = max((2 * layer.shape[0] * layer.shape[1] for layer in layers), default=0)
    needed = sum(layer.nbytes for layer in layers) + scratch
    needed += sum(math.prod(shape) * dtype.itemsize for shape, dtype, _ in plain)
    device = compat.model_management.get_torch_device()
    total = 0 if device.type == "cpu" else compat.model_management.get_total_memory(device)
    name = "CPU" if device.type == "cpu" else compat.model_management.get_torch_device_name(device)
    return {"device": name, "needed_bytes": needed, "total_bytes": total, "fits": needed < total}


def _backend() -> dict[str, Any]:
    device = compat.model_management.get_torch_device()
    reasons = backends.unavailable_reasons(device)
    return {
        "name": backends.choose(device).name,
        "unavailable": {name: reason for name, reason in reasons.items() if reason is not None},
    }


def _fast() -> dict[str, Any]:
    device = compat.model_management.get_torch_device()
    reason = backends.fast_unavailable_reason(device)
    return {"available": reason is None, "kind": backends.fast_kind(device), "reason": reason}


# ---- the routes ------------------------------------------------------------------------------------------------------


LARGEST_BODY = 1 << 16
LONGEST_NAME = 1024
Handler = Callable[[web.Request], Awaitable[web.Response]]


def _guarded(handler: Handler) -> Handler:
    """A handler behind what holds for every route: ComfyUI's own page asks, and whatever it asks is answered in a sentence."""

    @functools.wraps(handler)
    async def guarded(request: web.Request) -> web.Response:
        await _own_page(request)
        try:
            response = await handler(request)
        except HLWQError as error:
            response = _refusal(error)
        except OSError as error:
            log.exception("HLWQ: %s failed", request.path)
            text = f"the system refuses: {error.strerror or error}"
            response = web.json_response({"error": text, "fixes": []}, status=422)
        # Another site's page may not have it as a picture or a script either.
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    return guarded


async def _own_page(request: web.Request) -> None:
    """Refuse what another site's page asks for: by ComfyUI's own check, also with --enable-cors-header. A picture comes without
    an origin, so for what is read the browser must say that it is our page's."""
    foreign = request.method == "GET" and request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none")
    if foreign or not await origin.accepted(request):
        raise web.HTTPForbidden(text="HLWQ takes requests from ComfyUI's own page only")


def _name(text: str) -> str:
    """A name out of a request; its meaning is judged elsewhere, its form here."""
    if len(text) > LONGEST_NAME or any(len(part.encode(errors="replace")) > 255 for part in re.split(r"[/\\]", text)):
        raise web.HTTPBadRequest(text="no name of a checkpoint is so long")
    if not text.isprintable():
        raise web.HTTPBadRequest(text="a name has no control characters and no halves of characters")
    return text


def _refusal(error: HLWQError) -> web.Response:
    return web.json_response({"error": str(error), "fixes": ["download"]}, status=422)


def _verify(job: Job, path: Path) -> str:
    result = verify.verify(path, progress=lambda done, total, text: job.tick(f"Verifying {text}", done, total))
    if not result.ok:
        raise FormatError(result.text())
    return result.text()


def _download(job: Job, repository: str) -> str:
    folder = Path(compat.folder_paths.get_folder_paths("hlwq")[0], repository.split("/")[1])
    result = download.download(
        repository, folder, progress=lambda done, total, text: job.tick(f"Downloading {text}", done, total)
    )
    gigabytes = result.nbytes / 1e9
    text = f"{len(result.fetched)} files fetched, {len(result.present)} were there: {gigabytes:.1f} GB in {folder.name}"
    return "\n".join(filter(None, (text, result.note())))


async def get_checkpoint(request: web.Request) -> web.Response:
    """?name= -> the report, or 422 `{error, fixes}`."""
    return web.json_response(await asyncio.to_thread(report, _name(request.query.get("name", ""))))


async def get_coverage(request: web.Request) -> web.Response:
    """?name= -> a PNG of what is there and what is missing."""
    name = _name(request.query.get("name", ""))

    def draw() -> bytes:
        path = locations.checkpoint(name)
        png = io.BytesIO()
        inspect.coverage_picture(inspect.inspect(path)).save(png, "PNG")
        return png.getvalue()

    return web.Response(body=await asyncio.to_thread(draw), content_type="image/png")


async def post_verify(request: web.Request) -> web.Response:
    """{name} -> {job}; the findings come with the job's last event."""
    name = _name((await _body(request)).get("name", ""))
    path = await asyncio.to_thread(locations.checkpoint, name)
    return web.json_response({"job": _start("verify", name, lambda job: _verify(job, path)).id})


async def post_download(request: web.Request) -> web.Response:
    """{repository} -> {job}; only the repositories that the pack knows."""
    repository = (await _body(request)).get("repository", "")
    if repository not in families.repositories():
        known = " or ".join(families.repositories())
        return _refusal(InputError("unknown repository", expected=known, found=repository, fix="take one of these"))
    return web.json_response({"job": _start("download", repository, lambda job: _download(job, repository)).id})


async def post_cancel(request: web.Request) -> web.Response:
    """{job} -> {}; the job stops at its next step."""
    job = _jobs.get((await _body(request)).get("job", ""))
    if job is not None:
        job.cancel()
    return web.json_response({})


async def get_published(request: web.Request) -> web.Response:
    """-> {repository: about the bytes that it takes on the disk}, of what the pack can fetch."""
    return web.json_response(families.published())


async def post_memory(request: web.Request) -> web.Response:
    """{} -> {bytes, device}: the most memory of the card in use since this was asked last; without a card, what the
    program holds now."""
    await _body(request)
    return web.json_response(memory.most(compat.model_management.get_torch_device()))


async def _body(request: web.Request) -> dict[str, str]:
    # A form of another site cannot send this type without being asked first.
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text="application/json is expected")
    raw = await request.content.read(LARGEST_BODY + 1)
    while len(raw) <= LARGEST_BODY and (more := await request.content.read(LARGEST_BODY + 1 - len(raw))):
        raw += more
    if len(raw) > LARGEST_BODY:
        raise web.HTTPRequestEntityTooLarge(max_size=LARGEST_BODY, actual_size=len(raw), text="the body is too large")
    try:
        body = json.loads(raw.decode(request.charset or "utf-8"))
    except (ValueError, LookupError, RecursionError) as error:
        raise web.HTTPBadRequest(text="the body is no JSON that can be read here") from error
    if not isinstance(body, dict) or not all(isinstance(value, str) for value in body.values()):
        raise web.HTTPBadRequest(text="an object of strings is expected")
    return body


def register() -> None:
    """Add the routes to ComfyUI's server; nothing where there is none (import in a test or a script)."""
    server = getattr(PromptServer, "instance", None)
    if server is None:
        return
    server.routes.get("/hlwq/checkpoint")(_guarded(get_checkpoint))
    server.routes.get("/hlwq/coverage")(_guarded(get_coverage))
    server.routes.get("/hlwq/published")(_guarded(get_published))
    server.routes.post("/hlwq/memory")(_guarded(post_memory))
    server.routes.post("/hlwq/verify")(_guarded(post_verify))
    server.routes.post("/hlwq/download")(_guarded(post_download))
    server.routes.post("/hlwq/cancel")(_guarded(post_cancel))


register()
