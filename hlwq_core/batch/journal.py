"""The journal of a batch: a file that only grows, a line an event, on the disk before anything rests on it.

A kill or a power cut may tear the last line; it is cut off, and what it told of had not been done yet. One driver at a time holds
the journal. Times in it are for readers: nothing is decided by a clock.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout  # torch and huggingface_hub bring it

from ..errors import FormatError, InputError, printable
from ..format.bounded import open_regular, parse_object, unreadable
from ..format.places import write_error
from ..format.portable import why_not

VERSION = 1
_LINE = 4 << 20
_ERROR = 4000


@dataclass
class Made:
    """What a job has made.

    Attributes:
        files: for each its name in the folder, its name as long as it is a part, sha256 and size in bytes.
        record: for the manifest: name, prompt, seed, workflow, seconds, worker, prompt_id, report, node_seconds.
    """

    files: list[dict[str, Any]]
    record: dict[str, Any]


@dataclass
class State:
    """What the journal knows of a job."""

    made: Made | None = None
    failures: list[dict[str, Any]] = field(default_factory=list)
    queued: tuple[str, str] | None = None

    @property
    def refused(self) -> bool:
        """Whether another try would end as the last one did."""
        return bool(self.failures) and bool(self.failures[-1].get("final"))


class Journal:
    """The journal of one folder; use it as `with Journal(folder) as journal`.

    Args:
        folder: `.hlwq-batch` in the folder of the outputs; made if it is not there.

    Attributes:
        jobs: what is known, by the jobs' ids.
        tag: what the first line says of the batch, by whoever began it.

    Raises:
        InputError: another driver holds it, or it cannot be written.
        FormatError: a line is not of a journal.
    """

    def __init__(self, folder: Path, tag: dict[str, Any] | None = None):
        self.folder = folder
        self.path = folder / "journal.jsonl"
        self.jobs: dict[str, State] = {}
        self.tag = dict(tag or {})
        self._lock = FileLock(folder / "lock")
        self._file: Any = None
        self._end = 0

    def __enter__(self) -> Journal:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                "another call works on this batch",
                file=self.folder.parent,
                expected="one call at a time",
                found=f"one that holds {error.lock_file}",
                fix="wait until it has ended, or choose another folder with --output",
            ) from error
        except (OSError, NotImplementedError) as error:
            raise InputError(
                "the batch cannot be locked against other calls",
                file=self.folder,
                expected="a folder that can be written, on a disk that has locks",
                found=str(error) or type(error).__name__,
                fix="choose another folder with --output",
            ) from error
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up the file and the lock; safe to call twice."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
        self._lock.release()

    def discard(self) -> None:
        """Remove the journal: the batch is whole, and a later call begins a new one. It stays where a part has not got its name
        yet, which only the journal knows."""
        if any(map(self.lacks_name, self.jobs.values())):
            return
        self.close()
        for path in (self.path, self.folder / "lock"):
            with contextlib.suppress(OSError):
                path.unlink()
        for folder in (self.folder / "parts", self.folder):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def lacks_name(self, state: State) -> bool:
        """Whether a job is made, and a part of it could not be given its name: what has that name is another file."""
        return state.made is not None and any(
            (self.folder / "parts" / file["part"]).exists() for file in state.made.files
        )

    # ---- reading ----

    def _open(self) -> None:
        try:
            raw = b""
            if os.path.lexists(self.path):
                with open_regular(self.path) as file:
                    raw = file.readall() or b""
            self._end = self._read(raw)
            self._file = open(self.path, "r+b" if os.path.lexists(self.path) else "x+b", buffering=0)
            if self._end != len(raw):
                self._file.truncate(self._end)
                os.fsync(self._file.fileno())
            _sync_folder(self.folder)
        except OSError as error:
            if isinstance(error, FileNotFoundError | PermissionError):
                raise unreadable(self.path, error, "the journal of a batch") from error
            raise write_error(self.path, error) from error
        if not self._end:
            self.append({"event": "begin", "version": VERSION, "tag": self.tag})

    def _read(self, raw: bytes) -> int:
        """Take in the lines; where what is whole ends."""
        end, number = 0, 0
        for number, line, after in _lines_of(raw):
            last = after >= len(raw)
            try:
                self._take(line, number)
            except FormatError:
                # Only the last line can have been torn: with its end missing, or as zeros that a power cut left.
                if last:
                    return end
                raise
            if not raw[after - 1 : after] == b"\n":
                return end
            end = after
        return end

    def _take(self, line: bytes, number: int) -> None:
        def wrong(found: object) -> FormatError:
            return FormatError(
                f"line {number:,} is not of a batch's journal",
                file=self.path,
                expected="lines that this command wrote",
                found=found,
                fix="restore the file; or move the whole folder of outputs away: the batch then begins anew",
            )

        if len(line) > _LINE:
            raise wrong(f"{len(line):,} bytes")
        values = parse_object(line, f"line {number:,}", self.path)
        event, job = values.get("event"), values.get("job")
        if (number == 1) != (event == "begin") or (number == 1 and values.get("version") != VERSION):
            raise wrong(f"event {event!r}, version {values.get('version')!r}")
        if event == "begin":
            tag = values.get("tag")
            self.tag = tag if isinstance(tag, dict) else {}
            return
        if not isinstance(job, str) or not 0 < len(job) <= 64 or not job.isalnum():
            raise wrong(f"a job called {job!r}")
        state = self.jobs.setdefault(job, State())
        if event == "queued":
            worker, prompt = values.get("worker"), values.get("prompt_id")
            if not isinstance(worker, str) or not isinstance(prompt, str) or not _is_plain(prompt):
                raise wrong(values)
            state.queued = (worker, prompt)
        elif event == "failed":
            error = values.get("error")
            state.failures.append({**values, "error": error if isinstance(error, str) else "no reason given"})
            state.queued = None
        elif event == "again":
            state.failures.clear()
        elif event == "made":
            if why := _wrong_output(values):
                raise wrong(why)
            state.made = Made(values["files"], values["record"])
            state.queued = None
        elif event == "lost":
            state.made = None
        else:
            raise wrong(f"event {event!r}")

    # ---- writing ----

    def append(self, values: dict[str, Any]) -> None:
        """Write an event, and wait until it is on the disk.

        Raises:
            DiskFullError: there is no room; the journal is as it was.
            InputError: the journal is no longer where it was, or cannot be written.
        """
        line = json.dumps({**values, "time": round(time.time(), 3)}, ensure_ascii=True).encode() + b"\n"
        try:
            here, there = os.fstat(self._file.fileno()), os.stat(self.path)
            if os.name != "nt" and (here.st_ino, here.st_dev) != (there.st_ino, there.st_dev):
                raise FileNotFoundError(2, "it was replaced by another file", str(self.path))
            if here.st_size != self._end:
                raise OSError(5, "somebody else writes to it")
            self._file.seek(self._end)
            left = memoryview(line)
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
            raise write_error(self.path, error) from error
        self._end += len(line)

    def queued(self, job: str, worker: str, prompt_id: str) -> None:
        """A job is about to be queued there, under this id."""
        self.append({"event": "queued", "job": job, "worker": worker, "prompt_id": prompt_id})

    def failed(self, job: str, error: str, worker: str, final: bool) -> None:
        """A job failed by itself; `final`: it would do so each time."""
        event = {"event": "failed", "job": job, "error": printable(error[:_ERROR]), "worker": worker, "final": final}
        self.append(event)
        self.jobs.setdefault(job, State()).failures.append(event)

    def again(self, job: str) -> None:
        """The failures of a job no longer count."""
        self.append({"event": "again", "job": job})
        self.jobs.setdefault(job, State()).failures.clear()

    def made(self, job: str, made: Made) -> None:
        """The files of a job lie beside the journal, whole: from now on it is made."""
        self.append({"event": "made", "job": job, "files": made.files, "record": made.record})
        self.jobs.setdefault(job, State()).made = made

    def lost(self, job: str) -> None:
        """The files of a job are no longer there: it is to be made again."""
        self.append({"event": "lost", "job": job})
        self.jobs.setdefault(job, State()).made = None


def _lines_of(raw: bytes) -> Iterator[tuple[int, bytes, int]]:
    at, number = 0, 0
    while at < len(raw):
        end = raw.find(b"\n", at)
        after = len(raw) if end < 0 else end + 1
        number += 1
        yield number, raw[at:after].rstrip(b"\n"), after
        at = after


def _is_plain(text: str) -> bool:
    return 0 < len(text) <= 64 and all(c.isalnum() or c == "-" for c in text)


def _wrong_output(values: dict[str, Any]) -> str | None:
    files, record = values.get("files"), values.get("record")
    if not isinstance(files, list) or not files or not isinstance(record, dict):
        return "an output without files"
    for file in files:
        if why := _wrong_file(file) if isinstance(file, dict) else "no object":
            return f"a file of which {why}"
    return None


def _wrong_file(file: dict[str, Any]) -> str | None:
    for key in ("name", "part"):
        name = file.get(key)
        if not isinstance(name, str) or why_not(name) is not None or name.startswith(".hlwq"):
            return f"the {key} is {name!r}"
    digest = file.get("sha256")
    if not isinstance(digest, str) or len(digest) != 64 or not _is_plain(digest):
        return f"the sha256 is {digest!r}"
    if type(file.get("size")) is not int or file["size"] < 0:
        return f"the size is {file.get('size')!r}"
    return None


def _sync_folder(folder: Path) -> None:
    """The names in a folder onto the disk; Windows has no such thing, and does it by itself."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
