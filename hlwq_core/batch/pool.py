"""Which workers there are: ComfyUIs that run, one or several that are started here, or one a card of a Ray cluster."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .. import comfyui
from ..client.server import LocalServer, cards, has_device
from ..errors import InputError
from . import making
from .driver import Worker
from .making import Say, Watcher
from .workers import OwnServer, RunningServer


@dataclass
class Where:
    """Where jobs are made.

    Attributes:
        servers: addresses of ComfyUIs that run; with any, nothing is started.
        headers: sent to them.
        comfyui, base, python, timeout, log, extra: see `LocalServer`; `log` gets the worker's number where there are several.
        gpus: `all`, or numbers of cards with commas between; one ComfyUI a card.
        workers: so many ComfyUIs, on the CPU; with `ray`, so many actors.
        ray: address of a Ray cluster.
    """

    servers: Sequence[str] = ()
    headers: dict[str, str] = field(default_factory=dict)
    comfyui: str | None = None
    base: str | None = None
    python: str | None = None
    timeout: float = 300.0
    log: str | None = None
    extra: Sequence[str] = ()
    gpus: str | None = None
    workers: int | None = None
    ray: str | None = None


def check(where: Where) -> None:
    """Refuse what does not go together.

    Raises:
        InputError: as its name says.
    """
    starting = {
        "--comfyui": where.comfyui,
        "--base-directory": where.base,
        "--python": where.python,
        "--comfyui-args": where.extra,
        "--comfyui-log": where.log,
        "--gpus": where.gpus,
        "--workers": where.workers,
        "--ray": where.ray,
    }
    given = [option for option, value in starting.items() if value]
    if where.servers and given:
        raise InputError(
            "--server uses a ComfyUI that runs; these options are for one that is started",
            expected="one or the other",
            found=", ".join(given),
            fix="leave one or the other away",
        )
    if where.headers and not where.servers:
        raise InputError(
            "--header is for a server that runs",
            expected="--server with it",
            found="no --server",
            fix="add --server URL, or leave --header away",
        )
    if not 0 < where.timeout < float("inf"):
        raise InputError("this is no time to wait", expected="seconds", found=where.timeout, fix="--start-timeout 300")


def pool(where: Where, *, say: Say = lambda line: None, watcher: Watcher = making.quiet) -> list[Worker]:
    """The workers; none is started yet.

    Raises:
        HLWQError: there is no ComfyUI, no such card, no Ray.
    """
    check(where)
    said: set[str] = set()
    if where.servers:
        found = [RunningServer(url, where.headers, say=say, watcher=watcher, said=said) for url in where.servers]
        names = [worker.name for worker in found]
        if len(set(names)) != len(names):
            raise InputError(
                "a server is named twice", expected="each once", found=", ".join(names), fix="leave one of them away"
            )
        return list(found)
    if where.ray:
        from .cluster import actors

        return list(actors(where, say=say))
    program = comfyui.program(where.comfyui)
    python = where.python or sys.executable
    places = _places(where, python)
    several = len(places) > 1
    workers: list[Worker] = []
    for number, (name, variables, cpu) in enumerate(places, 1):
        server = functools.partial(
            LocalServer,
            program,
            base=where.base,
            python=where.python,
            extra=where.extra,
            timeout=where.timeout,
            log=_numbered(where.log, number) if several else where.log,
            say=say,
            env=variables,
            cpu=cpu,
            alone=several,
        )
        workers.append(OwnServer(name, server, say=say, watcher=watcher, said=said))
    return workers


def _places(where: Where, python: str) -> list[tuple[str, dict[str, str], bool | None]]:
    """For each ComfyUI to start: its name, its variables, and whether it is on the CPU (None: it finds out)."""
    if where.workers:
        # Without a card for each they would share one; on the CPU they share its cores.
        return [(f"cpu{number}", {}, True) for number in range(where.workers)]
    if not where.gpus:
        return [("comfyui", {}, None)]
    found = cards(python)
    if not found:
        apple = " (an accelerator that cannot be divided)" if has_device(python) else ""
        raise InputError(
            "there is no GPU to divide the jobs over",
            expected="cards that torch sees",
            found=f"none{apple}",
            fix="leave --gpus away; on the CPU, --workers 2 starts two ComfyUIs",
        )
    numbers = list(range(len(found)))
    if where.gpus != "all":
        texts = [text.strip() for text in where.gpus.split(",")]
        if not all(text.isdecimal() and int(text) < len(found) for text in texts) or len(set(texts)) != len(texts):
            raise InputError(
                "these are not cards of this machine",
                expected=f"all, or some of {', '.join(map(str, numbers))}",
                found=where.gpus,
                fix="--gpus all",
            )
        numbers = [int(text) for text in texts]
    return [(f"gpu{number}", found[number], False) for number in numbers]


def _numbered(log: str | None, number: int) -> str | None:
    if log is None:
        return None
    path = Path(log)
    return str(path.with_name(f"{path.stem}_{number}{path.suffix}"))
