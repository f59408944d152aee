"""One job: what is asked for, the name of its output, and what tells it from the others for good."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..client.generate import Request, workflow_path
from ..format.bounded import read_bytes
from ..format.portable import portable

LONGEST = 100_000  # characters of a text in a file of jobs, and of what a server says that is written down
_SLUG = 48


@dataclass
class Job:
    """One output that is asked for.

    Attributes:
        request: what to make.
        name: of the output, without an ending.
        label: how the job is called on screen.
        id: 16 hexadecimal digits of what it asks for: the same in each call, wherever it stands in the file.
    """

    request: Request
    name: str
    label: str = ""
    id: str = ""
    # Where the prompt was queued last, as (worker, prompt id): it may still be there.
    queued: tuple[str, str] | None = field(default=None, compare=False)

    def inputs(self) -> dict[str, Any]:
        """What is asked for, as JSON has it; what was left to the workflow is left out."""
        return plain(self.request)


_USUAL = vars(Request())


def plain(request: Request) -> dict[str, Any]:
    """A request as JSON has it, without what stays as in the workflow."""
    values = {}
    for key, value in vars(request).items():
        if value != _USUAL[key]:
            values[key] = str(value) if isinstance(value, Path) else value
    return values


def request_of(values: dict[str, Any]) -> Request:
    """The request that `plain` wrote."""
    values = copy.copy(values)
    for key in ("image", "audio", "workflow"):
        if values.get(key) is not None:
            values[key] = Path(values[key])
    values["loras"] = [(str(name), float(strength)) for name, strength in values.get("loras", [])]
    return Request(**values)


class Identities:
    """Gives jobs their ids: a digest of what they ask for, and of how often the same was asked for before."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}
        self._workflows: dict[Path, str] = {}

    def give(self, request: Request, written: dict[str, str] | None = None) -> str:
        """The id of one more job.

        Args:
            request: what it asks for.
            written: paths as the user wrote them: a folder that moved holds the same jobs.
        """
        values = {**plain(request), **(written or {})}
        values["workflow"] = self._workflow(workflow_path(request))
        text = json.dumps(values, sort_keys=True, ensure_ascii=True)
        count = self._seen[text] = self._seen.get(text, 0) + 1
        return hashlib.sha256(f"{count}\n{text}".encode()).hexdigest()[:16]

    def _workflow(self, path: Path) -> str:
        if path not in self._workflows:
            self._workflows[path] = hashlib.sha256(read_bytes(path, "a workflow")).hexdigest()
        return self._workflows[path]


def with_seed(request: Request, identity: str) -> Request:
    """A request without a seed gets one that follows from its id: the same in each call, another one for each job."""
    if request.seed is not None:
        return request
    return replace(request, seed=int(identity[:8], 16))


def slug(text: str) -> str:
    """The beginning of a text as a part of a file's name."""
    words = re.sub(r"[^\w]+", "-", text.lower(), flags=re.UNICODE).strip("-_")
    short = words[:_SLUG].rstrip("-_")
    while len(short.encode()) > 4 * _SLUG // 2:
        short = short[:-1]
    return portable(short) if short else "job"


def default_name(request: Request, identity: str) -> str:
    """The name of a job's output where the user gives none: its words, its seed, and the begin of its id."""
    words = request.prompt or (request.image or request.workflow or Path("job")).stem
    seed = "" if request.seed is None else f"_seed{request.seed}"
    return f"{slug(words)}{seed}_{identity[:8]}"


def check_names(jobs: Iterable[Job]) -> Job | None:
    """The first job whose name another one has, in capitals or not; None if there is none."""
    seen: set[str] = set()
    for job in jobs:
        key = job.name.casefold()
        if key in seen:
            return job
        seen.add(key)
    return None
