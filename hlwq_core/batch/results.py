"""The folder of a batch's outputs: each job's files appear once, whole, under its name, and nothing that is there is replaced.

A file arrives as a part beside the journal. When all parts of a job are on the disk the journal says that it is made; then each
gets its name by a hard link, which fails where the name is taken. Killed in between, the next call gives the names.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..format.places import write_beside, write_error
from ..format.portable import LONGEST as LONGEST_NAME
from ..format.portable import portable
from .job import LONGEST, Job
from .journal import Journal, Made, State, _sync_folder

STATE = ".hlwq-batch"
MANIFEST = "manifest.jsonl"
_VIDEOS = (".mp4", ".webm", ".mkv", ".mov")
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EXDEV)


def discard(parts: Iterable[Path]) -> None:
    """Remove what arrived of an attempt that came to nothing; what cannot be removed goes at the next call's begin."""
    for part in parts:
        with contextlib.suppress(OSError):
            part.unlink()


@dataclass
class Arrived:
    """A job's files as parts, and what is known of the run.

    Attributes:
        parts: path of the part, the server's name of the file, sha256.
    """

    parts: list[tuple[Path, str, str]]
    seconds: float
    prompt_id: str
    workflow: str
    report: str = ""
    node_seconds: dict[str, float] = field(default_factory=dict)


class Results:
    """Where the outputs of a batch lie.

    Args:
        folder: is there and can be written.
        journal: held for that folder.
        place: gives the path for a file, from the job, the server's name, and how many the job has; for callers with names of
            their own. None: the job's name.
        replace: whether such a path may replace a file that is there.
    """

    def __init__(
        self,
        folder: Path,
        journal: Journal,
        place: Callable[[Job, str, int], Path] | None = None,
        replace: bool = False,
    ):
        self.folder = folder
        self.journal = journal
        self._place = place
        self._replace = replace
        self.parts = journal.folder / "parts"

    def begin(self, jobs: Sequence[Job], say: Callable[[str], None]) -> None:
        """Finish what a killed call left, and look whether what was made is still there.

        Raises:
            InputError: a name is taken by a file that is not of this batch.
        """
        wanted = {job.id for job in jobs}
        try:
            self.parts.mkdir(exist_ok=True)
            for identity, state in self.journal.jobs.items():
                if state.made is not None:
                    lost = self._finish(identity, state.made)
                    if lost and identity in wanted:
                        say(f"{lost} is no longer there: it is made again")
                        self.journal.lost(identity)
            kept = {file["part"] for state in self.journal.jobs.values() if state.made for file in state.made.files}
            for path in self.parts.iterdir():
                if path.name not in kept:
                    path.unlink()
        except OSError as error:
            raise write_error(self.parts, error) from error
        if self._place is None:
            self._refuse_taken(jobs)

    def _refuse_taken(self, jobs: Sequence[Job]) -> None:
        known: dict[str, str] = {}
        for identity, state in self.journal.jobs.items():
            known |= {file["name"]: identity for file in (state.made.files if state.made else ())}
        wanted = {job.id for job in jobs}
        there = {name.casefold(): name for name in os.listdir(self.folder)}
        for job in jobs:
            if self.state(job).made is not None:
                continue
            for ending in _VIDEOS:
                name = there.get(f"{job.name}{ending}".casefold())
                # The second file of another job may have this name: that is made way for.
                if name is not None and known.get(name) not in wanted:
                    raise InputError(
                        f"the output of job {job.name} would have the name of a file that is there",
                        file=self.folder / name,
                        expected="a name that is free",
                        found="an output of what was asked for earlier"
                        if name in known
                        else "a file that is not of this batch",
                        fix="move that file away, give the job another name, or choose another folder with --output",
                    )

    def _finish(self, identity: str, made: Made) -> str | None:
        """Give the files their names where that was not done; the name of one that is gone."""
        renamed = False
        for file in made.files:
            target, part = self._target(file), self.parts / file["part"]
            if not (part.is_file() and part.stat().st_size == file["size"] and sha256_of(part) == file["sha256"]):
                if not target.is_file():
                    return str(file["name"])
                continue
            if target.is_file() and target.stat().st_size and sha256_of(target) == file["sha256"]:
                part.unlink()
                continue
            if target.is_file() and target.stat().st_size and not self._replace:  # somebody else's, since then
                file["name"] = _free(target, set()).name
                renamed = True
                self.journal.made(identity, made)
            self._name(part, self._target(file))
        if renamed:
            _sync_folder(self.folder)
        return None

    def _target(self, file: dict[str, Any]) -> Path:
        return self.folder / str(file["name"])

    def state(self, job: Job) -> State:
        """What the journal knows of a job."""
        return self.journal.jobs.get(job.id) or State()

    def part(self, job: Job) -> Path:
        """A path where a file of a job may arrive."""
        return self.parts / f"{job.id}-{uuid.uuid4().hex[:12]}"

    def commit(self, job: Job, arrived: Arrived, worker: str) -> Made:
        """The parts become the job's output.

        Raises:
            HLWQError: the disk is full, or the folder is gone: the job is not made.
        """
        state = self.state(job)
        if state.made is not None:  # another worker was thought dead, and was not
            for part, _, _ in arrived.parts:
                part.unlink(missing_ok=True)
            return state.made
        files: list[dict[str, Any]] = []
        try:
            taken: set[Path] = set()
            for number, (part, name, digest) in enumerate(arrived.parts, 1):
                target = self._choose(job, name, number, len(arrived.parts), taken)
                taken.add(target)
                size = part.stat().st_size
                files.append({"name": target.name, "part": part.name, "sha256": digest, "size": size})
            _sync_folder(self.parts)
        except OSError as error:
            raise write_error(self.folder, error) from error
        record = {
            "name": job.name,
            "prompt": job.request.prompt and job.request.prompt[:LONGEST],
            "seed": job.request.seed,
            "workflow": arrived.workflow,
            "seconds": round(arrived.seconds, 3),
            "worker": worker,
            "prompt_id": arrived.prompt_id,
            "report": arrived.report[:LONGEST],
            "node_seconds": {k[:200]: round(v, 3) for k, v in list(arrived.node_seconds.items())[:2000]},
        }
        made = Made(files, record)
        self.journal.made(job.id, made)
        try:
            for file in files:
                self._name(self.parts / file["part"], self._target(file))
            _sync_folder(self.folder)
        except OSError as error:
            raise write_error(self.folder, error) from error
        return made

    def _choose(self, job: Job, name: str, number: int, count: int, taken: set[Path]) -> Path:
        if self._place is not None:
            target = self._place(job, name, count)
            if self._replace and count == 1:
                return target
        else:
            ending = re.search(r"\.[A-Za-z0-9]{1,8}\Z", name)
            again = f"_{number}" if number > 1 else ""
            target = self.folder / portable(f"{job.name}{again}{ending[0] if ending else ''}")
        if target.name.casefold() == MANIFEST or target.name.startswith(".hlwq"):
            target = target.with_name(f"_{target.name}")
        return _free(target, taken)

    def _name(self, part: Path, target: Path) -> None:
        """Give a part its name. Fails where the name is taken, on every system."""
        if self._replace:
            os.replace(part, target)
            return
        if os.path.lexists(target) and not os.path.getsize(target) and os.path.getsize(part):
            os.replace(part, target)  # reserved below, by a call that was killed
            return
        try:
            os.link(part, target)
        except OSError as error:
            if isinstance(error, FileExistsError) or error.errno not in _NO_LINKS:
                raise
            if os.name == "nt":
                os.rename(part, target)  # fails where there is something
                return
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            os.replace(part, target)
            return
        part.unlink()

    # ---- the manifest ----

    def manifest(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """What became of each job, in their order; then what the journal knows besides."""
        listed = [self.entry(job) for job in jobs]
        known = {job.id for job in jobs}
        for identity, state in self.journal.jobs.items():
            if identity not in known and state.made is not None:
                listed.append({"job": identity, **state.made.record, **_files(state.made), "listed": False})
        return listed

    def entry(self, job: Job) -> dict[str, Any]:
        """What became of a job."""
        state = self.state(job)
        entry: dict[str, Any] = {"job": job.id, "name": job.name, "inputs": job.inputs()}
        entry |= {"prompt": job.request.prompt, "seed": job.request.seed, "tries": len(state.failures)}
        entry["error"] = state.failures[-1]["error"] if state.failures and state.made is None else None
        if state.made is None:
            return {**entry, "files": []}
        return {**entry, **state.made.record, "tries": len(state.failures) + 1, **_files(state.made)}

    def write_manifest(self, jobs: Sequence[Job]) -> Path:
        """`manifest.jsonl` in the folder: a line a job."""
        path = self.folder / MANIFEST
        with write_beside(path, self.journal.folder / "manifest.partial") as out:
            for entry in self.manifest(jobs):
                out.write(json.dumps(entry).encode() + b"\n")
        return path


def _free(target: Path, taken: set[Path]) -> Path:
    """The path, or the next like it where nothing is; in capitals or not, since disks differ in that."""
    names = {path.name.casefold() for path in taken}
    stem = target.stem.encode()[: LONGEST_NAME - 20].decode(errors="ignore")
    candidate, n = target, 1
    while candidate.name.casefold() in names or os.path.lexists(candidate):
        candidate, n = target.with_name(f"{stem}_{n}{target.suffix}"), n + 1
    return candidate


def _files(made: Made) -> dict[str, Any]:
    return {"files": [{key: file[key] for key in ("name", "size", "sha256")} for file in made.files]}


def sha256_of(path: Path) -> str:
    """The digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def output_folder(path: Path) -> Path:
    """The folder of outputs, made if it is not there.

    Raises:
        InputError: it cannot be made, or not be written to.
    """
    path = path.expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    except (OSError, ValueError) as error:
        raise InputError(
            "this cannot be the folder of the outputs",
            file=path,
            expected="a folder that can be written to",
            found=getattr(error, "strerror", None) or error,
            fix="correct --output",
        ) from error
    return path
