"""A video from each of some prompts, or a workflow run several times: what `generate` and `queue` do, for programs too.

They go the way of `batch`. The journal lies in the folder of the results while there is something left; a call that was killed is
gone on with by the same call, which is then without a trace.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..client import graph
from ..client.generate import Request, build, random_seed
from ..client.node_progress import NodeProgress
from ..errors import HLWQError, InputError, WorkError
from ..format.portable import portable
from .driver import Driver, Events, Worker
from .job import Identities, Job
from .journal import Journal
from .making import Say
from .results import Results
from .workers import RunningServer

if TYPE_CHECKING:
    from ..media import MediaInfo


@dataclass
class Result:
    """One prompt's outcome: the files fetched, the loader's report, seconds by node title."""

    prompt: str
    prompt_id: str = ""
    files: list[Path] = field(default_factory=list)
    media: list[MediaInfo | None] = field(default_factory=list)
    report: str = ""
    node_seconds: dict[str, float] = field(default_factory=dict)
    error: HLWQError | None = None


@dataclass
class Target:
    """Where results go: a file, a folder, or (None) the current folder under ComfyUI's name."""

    path: Path | None
    count: int = 1

    @classmethod
    def of(cls, given: str | os.PathLike[str] | None, count: int, suffix: str | None) -> Target:
        """Check it before hours of work rest on it. `suffix`: the only one that a file may have, if known."""
        path = Path(given).expanduser() if given else None
        if path is None or path.is_dir():
            folder = path or Path()
        elif str(given).endswith(("/", os.sep)):
            raise InputError("there is no such folder for the result", file=path, fix="make it, or correct --output")
        else:
            folder = path.parent
            if suffix and not path.suffix:
                path = path.with_suffix(suffix)
            if suffix and path.suffix.lower() != suffix:
                raise InputError(
                    "the result is another kind of file",
                    file=path,
                    expected=f"a name with {suffix}",
                    found=path.suffix,
                    fix=f"--output {path.with_suffix(suffix).name}",
                )
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            reason = "cannot be written to" if folder.is_dir() else "does not exist"
            raise InputError(f"the folder for the result {reason}", file=folder.absolute(), fix="correct --output")
        return cls(path, count)

    @property
    def is_file(self) -> bool:
        """Whether the user has named a file."""
        return self.path is not None and not self.path.is_dir()

    @property
    def folder(self) -> Path:
        """Where the files come to lie."""
        if self.path is None:
            return Path()
        return self.path.parent if self.is_file else self.path

    def place(self, name: str, number: int) -> Path:
        """The path for a result that ComfyUI calls `name`, of the `number`-th prompt (from 1)."""
        name = portable(Path(name.replace("\\", "/")).name)  # a server does not choose our folders, nor our devices
        if self.path is None or not self.is_file:
            return self.folder / name
        stem = self.path.stem
        if self.count > 1:
            stem += f"_{number:0{len(str(self.count))}d}"
        return self.path.with_name(portable(stem + Path(name).suffix))


def target_of(output: str | os.PathLike[str] | None, requests: Sequence[Request]) -> Target:
    """The target of these requests; the pack's own workflows write MP4."""
    return Target.of(output, len(requests), None if any(r.workflow for r in requests) else ".mp4")


# ---- the way of a batch ------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What a call has made.

    Attributes:
        results: of the jobs that were made or failed, in their order.
        error: what ended the call before all were made or had failed.
    """

    results: list[Result]
    error: HLWQError | None = None


class _Said(Events):
    def __init__(self, say: Say, numbers: dict[str, int]):
        self._say = say
        self._numbers = numbers

    def say(self, line: str) -> None:
        self._say(line)

    def begin(self, total: int, done: int) -> None:
        if done:
            self.say(f"going on where an earlier call was stopped: {done} of {total} are made")

    def started(self, job: Job, worker: str) -> None:
        if len(self._numbers) > 1:
            self.say(f"{self._numbers[job.id]} of {len(self._numbers)}: {job.label}")

    def failed(self, job: Job, error: str, left: int) -> None:
        if len(self._numbers) > 1:
            self.say(error)


async def make_all(
    requests: Sequence[Request],
    workers: Sequence[Worker],
    target: Target,
    *,
    labels: Sequence[str] = (),
    say: Say = lambda line: None,
    warn: Say | None = None,
) -> Outcome:
    """Make what each request asks for, on whichever worker is free.

    Requests without a seed and without a `step` get one seed, by chance; a call that goes on where another one was killed
    takes that one's. Whatever ends this, the journal stays as long as something was made and something is left, or a prompt may
    still lie on a server.

    Args:
        labels: what each is called on screen; its prompt, if not given.
        warn: told, where it is given instead of `say`, what may still run when the call ends.
    """
    names = list(labels) or [request.prompt or "" for request in requests]
    identities = Identities()
    jobs = [
        Job(request, f"{number:06d}", name, identities.give(request))
        for number, (request, name) in enumerate(zip(requests, names, strict=True), 1)
    ]
    numbers = {job.id: number for number, job in enumerate(jobs, 1)}
    asked = json.dumps([str(target.path and target.path.absolute()), *numbers])
    state = target.folder / f".hlwq-{hashlib.sha256(asked.encode()).hexdigest()[:12]}"
    with Journal(state, {"seed": random_seed()}) as journal:
        _seed(jobs, journal)
        results = Results(
            target.folder,
            journal,
            lambda job, name, _: target.place(name, numbers[job.id]),
            replace=target.is_file,
        )
        error: HLWQError | None = None
        # The first that is refused is the last: the others ask for the same in other words.
        driver = Driver(jobs, workers, results, tries=1, events=_Said(say, numbers), alike=1, deaths=2)
        try:
            results.begin(jobs, say)
            await driver.run()
        except HLWQError as caught:
            error = caught
        except asyncio.CancelledError:
            if not driver.left:
                say("nothing is left running")
            raise
        finally:
            if driver.left:
                (warn or say)(where_it_runs(driver.left))
            settled = [job for job in jobs if results.state(job).made or results.state(job).failures]
            nothing = not driver.left and not any(results.state(job).made for job in jobs)
            if len(settled) == len(jobs) or nothing:
                journal.discard()
        return Outcome([_result(job, results) for job in settled if not journal.lacks_name(results.state(job))], error)


def where_it_runs(servers: Sequence[str]) -> str:
    """In words, which servers may still run something."""
    return f"{', '.join(servers)} did not take back what lies there and may still run it: the same call follows it"


def _seed(jobs: list[Job], journal: Journal) -> None:
    seed = journal.tag.get("seed")
    if type(seed) is not int or not 0 <= seed < 2**64:
        seed = random_seed()
    for job in jobs:
        request = job.request
        if request.seed is None and request.step is None and request.workflow is None:
            job.request = replace(request, seed=seed)


def _result(job: Job, results: Results) -> Result:
    state = results.state(job)
    if state.made is None:
        return Result(job.label, error=WorkError(str(state.failures[-1]["error"]), fix=None))
    record = state.made.record
    seconds = record.get("node_seconds")
    paths = [results.folder / file["name"] for file in state.made.files]
    return Result(
        job.label,
        str(record.get("prompt_id", "")),
        paths,
        [_probe(path) for path in paths],
        str(record.get("report", "")),
        {str(k): float(v) for k, v in seconds.items() if type(v) in (int, float)} if isinstance(seconds, dict) else {},
    )


def _probe(path: Path) -> MediaInfo | None:
    from ..media import probe

    if path.suffix.lower() not in (".mp4", ".webm", ".mkv", ".mov"):
        return None
    try:
        return probe(path)
    except HLWQError:  # moved by now, or a format of its own: that is no reason to lose the other results
        return None


# ---- for programs ------------------------------------------------------------------------------------------------


async def generate(
    url: str,
    requests: Sequence[Request],
    output: str | os.PathLike[str] | None = None,
    *,
    headers: dict[str, str] | None = None,
    check: Callable[[], None] | None = None,
    say: Say | None = None,
    quiet: bool = False,
) -> list[Result]:
    """Make the videos of all requests on the ComfyUI at `url`; the files are fetched to `output`.

    Args:
        output: a file (numbered if there are several requests), a folder, or None for the current folder.
        headers, check: see `Client`.

    Raises:
        HLWQError: the only one failed; or the server is gone, then the same call goes on where it was.
    """
    say = say or _to_stderr
    target = target_of(output, requests)
    outcome = await make_all(
        requests, [RunningServer(url, headers, check=check, say=say, watcher=watcher(quiet))], target, say=say
    )
    return unless_failed(outcome)


def queue_requests(
    workflow: Path, count: int, settings: Sequence[str], same_seed: bool = False
) -> tuple[list[Request], list[str]]:
    """A workflow run several times as requests, and what each is called. What is wrong is said before there is a server.

    Raises:
        InputError: it cannot be read, a setting does not fit, sizes or lengths are off LTX's grid.
    """
    if count < 1:
        raise InputError("the number of runs must be at least 1", found=count, fix="--count 1")
    request = Request(workflow=workflow, settings=list(settings), step=0)
    build(request)
    steps = [0] * count if same_seed else range(count)
    return [replace(request, step=step) for step in steps], [f"{workflow.name}, run {n}" for n in range(1, count + 1)]


async def queue(
    url: str,
    workflow: Path,
    count: int = 1,
    settings: Sequence[str] = (),
    output: str | os.PathLike[str] | None = None,
    *,
    same_seed: bool = False,
    headers: dict[str, str] | None = None,
    check: Callable[[], None] | None = None,
    say: Say | None = None,
    quiet: bool = False,
) -> list[Result]:
    """Run any workflow in API form `count` times, each time with its seeds one further, and fetch the files."""
    say = say or _to_stderr
    target = Target.of(output, count, None)
    requests, labels = queue_requests(workflow, count, settings, same_seed)
    outcome = await make_all(
        requests,
        [RunningServer(url, headers, check=check, say=say, watcher=watcher(quiet))],
        target,
        labels=labels,
        say=say,
    )
    return unless_failed(outcome)


def unless_failed(outcome: Outcome) -> list[Result]:
    """The results, unless something ended the call, or the only one failed."""
    if outcome.error is not None:
        raise outcome.error
    if len(outcome.results) == 1 and outcome.results[0].error is not None:
        raise outcome.results[0].error
    return outcome.results


def watcher(quiet: bool) -> Callable[[graph.Nodes], NodeProgress]:
    """Shows the nodes of the job that runs."""
    return lambda nodes: NodeProgress(nodes, quiet=quiet)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# ---- what is said at the end -------------------------------------------------------------------------------------


def describe(result: Result) -> str:
    """A result in words: each file with its streams, then the loader's report."""
    if result.error is not None:
        return f"failed: {result.prompt}\n{result.error}"
    lines = []
    for path, info in zip(result.files, result.media, strict=True):
        lines.append(str(path.absolute()))
        if info and (v := info.video):
            lines.append(
                f"  video: {v.codec}, {v.width}x{v.height}, {v.frames} frames at {float(v.rate):g} a second, "
                f"{v.duration:.3f} s"
            )
        if info and (a := info.audio):
            lines.append(f"  audio: {a.codec}, {a.rate} Hz, {a.channels} channels, {a.duration:.3f} s")
    if result.report:
        lines.append("\n".join("  " + line for line in ["decoded:", *("  " + x for x in result.report.splitlines())]))
    return "\n".join(lines)


def as_json(result: Result) -> dict[str, Any]:
    """A result for programs; durations in seconds, sizes in bytes."""

    def streams(info: MediaInfo | None) -> dict[str, Any]:
        if info is None:
            return {}
        plain = {k: copy.copy(vars(s)) if s else None for k, s in (("video", info.video), ("audio", info.audio))}
        return {"size": info.size, "duration": info.duration, **plain}

    def number(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: number(v) for k, v in value.items()}
        return float(value) if isinstance(value, Fraction) else value

    return {
        "prompt": result.prompt,
        "prompt_id": result.prompt_id,
        "files": [
            {"path": str(p.absolute()), **number(streams(i))} for p, i in zip(result.files, result.media, strict=True)
        ],
        "report": result.report,
        "node_seconds": {k: round(v, 3) for k, v in result.node_seconds.items()},
        "error": str(result.error) if result.error else None,
    }
