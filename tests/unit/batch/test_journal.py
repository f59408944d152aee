"""The journal and the outputs: killed anywhere, torn, hostile, on a full disk, under another call's feet."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hlwq_core.batch.job import Job
from hlwq_core.batch.journal import Journal
from hlwq_core.batch.results import STATE, Arrived, Results
from hlwq_core.client.generate import Request
from hlwq_core.errors import DiskFullError, FormatError, HLWQError, InputError

JOBS = [Job(Request(prompt=f"p{n}", seed=n), f"film{n}", f"p{n}", f"{n:016x}") for n in range(3)]
REPO = Path(__file__).resolve().parents[3]
silent: Callable[[str], None] = lambda line: None  # noqa: E731


def arrive(results: Results, job: Job, files: int = 2) -> Arrived:
    arrived = Arrived([], 1.0, "id", "0" * 64)
    for number in range(files):
        part, content = results.part(job), f"film of {job.name}, {number}".encode()
        part.write_bytes(content)
        arrived.parts.append((part, "x.mp4", hashlib.sha256(content).hexdigest()))
    return arrived


def make_all(folder: Path) -> None:
    """What a driver does: finish what is left of an earlier call, then make what is not made."""
    with Journal(folder / STATE) as journal:
        results = Results(folder, journal)
        results.begin(JOBS, silent)
        for job in JOBS:
            if results.state(job).made is None:
                results.commit(job, arrive(results, job), "w")
        results.write_manifest(JOBS)


def is_whole(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir() if path.name not in (STATE, "manifest.jsonl"))
    assert names == sorted(f"film{n}{end}" for n in range(3) for end in (".mp4", "_2.mp4"))
    for job in JOBS:
        for number, end in enumerate((".mp4", "_2.mp4")):
            assert (folder / f"{job.name}{end}").read_text() == f"film of {job.name}, {number}"
    assert not list((folder / STATE / "parts").iterdir())
    with Journal(folder / STATE) as journal:
        assert all(journal.jobs[job.id].made for job in JOBS)
    lines = (folder / STATE / "journal.jsonl").read_text().splitlines()
    assert sum('"made"' in line for line in lines) == 3, "each was made once"


CALLS = ("fsync", "link", "replace", "open", "unlink")


def killed_at(folder: Path, number: int) -> bool:
    """Run `make_all` in a child that is killed before its `number`-th call of the system; whether it came so far."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def counted(original: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal count
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **kwargs)

            return call

        try:
            for name in CALLS:
                setattr(os, name, counted(getattr(os, name)))
            make_all(folder)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kill -9")
def test_killed_at_any_call_of_the_system_each_job_is_made_once(tmp_path: Path) -> None:
    number = 1
    while True:
        folder = tmp_path / str(number)
        folder.mkdir()
        if not killed_at(folder, number):
            break
        # And the call that goes on is killed as well.
        killed_at(folder, 3 + number % 7)
        make_all(folder)
        for job in JOBS:
            for number_, end in enumerate((".mp4", "_2.mp4")):
                assert (folder / f"{job.name}{end}").read_text() == f"film of {job.name}, {number_}"
        is_whole(folder)
        shutil.rmtree(folder)
        number += 1
    assert number > 20


@pytest.mark.parametrize(
    "tail", [b"", b"{", b'{"event": "made", "job"', b"\0" * 700, b"\0" * 9 + b"\n", b"\xff\xfe\n", b"nonsense\n"]
)
def test_a_torn_last_line_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    make_all(tmp_path)
    path = tmp_path / STATE / "journal.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    with Journal(tmp_path / STATE) as journal:
        assert path.read_bytes() == whole
        journal.failed("ab", "no", "w", False)
    with Journal(tmp_path / STATE) as journal:
        assert journal.jobs["ab"].failures[0]["error"] == "no"


def test_wherever_the_power_was_cut(tmp_path: Path) -> None:
    make_all(tmp_path)
    path = tmp_path / STATE / "journal.jsonl"
    whole = path.read_bytes()
    ends = {position for position, byte in enumerate(whole) if byte == 10}
    for end in sorted({0, 1, *(e + d for e in ends for d in (-1, 0, 1, 2)), *range(0, len(whole), 97)}):
        path.write_bytes(whole[:end])
        with Journal(tmp_path / STATE) as journal:
            assert all(state.made for state in journal.jobs.values())


DIGEST = "0" * 64


def made(**changes: Any) -> dict[str, Any]:
    file = {"name": "a.mp4", "part": "p", "sha256": DIGEST, "size": 1, **changes}
    return {"event": "made", "job": "ab", "files": [file], "record": {}}


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"event": "made", "job": "ab"}',
        {"event": "begin", "version": 1},
        {"event": "unknown", "job": "ab"},
        {"event": "failed", "job": "../x"},
        {"event": "failed", "job": 5},
        {"event": "failed", "job": ""},
        {"event": "queued", "job": "ab", "worker": 5, "prompt_id": "a"},
        {"event": "queued", "job": "ab", "worker": "w", "prompt_id": "../../system_stats"},
        made(name="../a.mp4"),
        made(name="/etc/passwd"),
        made(name=".hlwq-batch"),
        made(name="con.mp4"),
        made(name="a:b"),
        made(part="../journal.jsonl"),
        made(sha256="x"),
        made(size=-1),
        made(size=True),
        {**made(), "files": []},
        {**made(), "files": [5]},
        {**made(), "record": 5},
    ],
    ids=str,
)
def test_a_hostile_line_is_refused_and_nothing_happens(tmp_path: Path, line: Any) -> None:
    make_all(tmp_path)
    path = tmp_path / STATE / "journal.jsonl"
    first, *rest = path.read_bytes().splitlines(keepends=True)
    bad = line if isinstance(line, bytes) else json.dumps(line).encode()
    path.write_bytes(b"".join([first, bad + b"\n", *rest]))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(FormatError, match="line 2") as caught, Journal(tmp_path / STATE):
        pass
    assert caught.value.file == str(path) and caught.value.fix
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_journal_that_is_none(tmp_path: Path) -> None:
    (tmp_path / STATE).mkdir()
    path = tmp_path / STATE / "journal.jsonl"
    path.write_text('{"event": "begin", "version": 99}\n{"event": "failed", "job": "ab"}\n')
    with pytest.raises(FormatError, match="line 1"), Journal(tmp_path / STATE):
        pass
    path.unlink()
    if hasattr(os, "mkfifo"):
        os.mkfifo(path)
        with pytest.raises(InputError, match="no regular file"), Journal(tmp_path / STATE):
            pass


def test_times_decide_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setattr(time, "time", lambda: 4e9)
    make_all(tmp_path)
    monkeypatch.setattr(time, "time", lambda: -5.0)
    (tmp_path / "film0.mp4").unlink()
    make_all(tmp_path)
    assert (tmp_path / "film0.mp4").is_file()


def test_two_calls_at_once_are_refused(tmp_path: Path) -> None:
    code = f"import sys; from pathlib import Path; from hlwq_core.batch.journal import Journal\nJournal(Path({str(tmp_path / STATE)!r})).__enter__()"
    with Journal(tmp_path / STATE):
        done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=60)
        assert "another call works on this batch" in done.stderr
    with Journal(tmp_path / STATE):
        pass


# ---- disks ----


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(tmp_path / STATE) as journal:
        results = Results(tmp_path, journal)
        results.begin(JOBS, silent)
        before = journal.path.read_bytes()
        fsync = os.fsync

        def full(number: int) -> None:
            if os.fstat(number).st_size != len(before) and os.readlink(f"/proc/self/fd/{number}").endswith(
                "journal.jsonl"
            ):
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(number)

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(DiskFullError, match="the disk is full"):
            results.commit(JOBS[0], arrive(results, JOBS[0]), "w")
        monkeypatch.setattr(os, "fsync", fsync)
        assert journal.path.read_bytes() == before and not (tmp_path / "film0.mp4").exists()
        results.commit(JOBS[0], arrive(results, JOBS[0]), "w")
    make_all(tmp_path)
    is_whole(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps a folder in which a file is open")
@pytest.mark.parametrize("how", ["removed", "moved", "another journal", "grown"])
def test_the_folder_vanishes(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    with Journal(folder / STATE) as journal:
        results = Results(folder, journal)
        results.begin(JOBS, silent)
        arrived = arrive(results, JOBS[0])
        if how == "removed":
            shutil.rmtree(folder)
        elif how == "moved":
            folder.rename(tmp_path / "elsewhere")
        elif how == "grown":
            with journal.path.open("a") as out:
                out.write("x")
        else:
            other = tmp_path / "other"
            shutil.copy(journal.path, other)
            other.replace(journal.path)
        with pytest.raises(HLWQError) as caught:
            results.commit(JOBS[0], arrived, "w")
        assert caught.value.fix and not (folder / "film0.mp4").exists()


def test_nothing_that_is_there_is_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "FILM1.MP4"
    mine.write_text("mine")
    with pytest.raises(InputError, match="film1") as caught:
        make_all(tmp_path)
    assert caught.value.fix and mine.read_text() == "mine"
    mine.unlink()
    with Journal(tmp_path / STATE) as journal:
        results = Results(tmp_path, journal)
        results.begin(JOBS, silent)
        (tmp_path / "film0.mp4").write_text("mine")  # came while the job ran
        results.commit(JOBS[0], arrive(results, JOBS[0], 1), "w")
        assert (tmp_path / "film0.mp4").read_text() == "mine"
        assert (tmp_path / "film0_1.mp4").read_text() == "film of film0, 0"


def test_a_file_that_came_between_journal_and_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(tmp_path / STATE) as journal:
        results = Results(tmp_path, journal)
        results.begin(JOBS, silent)
        monkeypatch.setattr(Results, "_name", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "gone")))
        with pytest.raises(HLWQError):
            results.commit(JOBS[0], arrive(results, JOBS[0], 1), "w")
    monkeypatch.undo()
    (tmp_path / "film0.mp4").write_text("mine")
    make_all(tmp_path)
    assert (tmp_path / "film0.mp4").read_text() == "mine"
    assert (tmp_path / "film0_1.mp4").read_text() == "film of film0, 0"


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_disk_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def link(*_: Any) -> None:
        raise OSError(code, "no links here")

    monkeypatch.setattr(os, "link", link)
    make_all(tmp_path)
    is_whole(tmp_path)
    # Killed between the name and the file.
    (tmp_path / "film0.mp4").rename(tmp_path / STATE / "parts" / part_of(tmp_path, "film0.mp4"))
    (tmp_path / "film0.mp4").touch()
    make_all(tmp_path)
    is_whole(tmp_path)


def part_of(folder: Path, name: str) -> str:
    with Journal(folder / STATE) as journal:
        return next(f["part"] for state in journal.jobs.values() for f in state.made.files if f["name"] == name)  # type: ignore[union-attr]


def test_names_that_would_be_somebody_elses(tmp_path: Path) -> None:
    """The manifest's, another job's second file's, the longest that a disk takes, and one of our own folders'."""
    names = ["manifest", "a", "a_2", "b" * (251 if os.name != "nt" else 40), ".hlwq-batch"]
    jobs = [Job(Request(prompt=name), name, name, f"{n:016x}") for n, name in enumerate(names)]
    with Journal(tmp_path / STATE) as journal:
        results = Results(tmp_path, journal)
        results.begin(jobs, silent)
        for job in jobs:
            arrived = arrive(results, job)
            arrived.parts = [
                (part, "x.jsonl" if job.name == "manifest" else "x.mp4", d) for part, _, d in arrived.parts
            ]
            results.commit(job, arrived, "w")
            results.write_manifest(jobs)
    with Journal(tmp_path / STATE) as journal:  # which can be read again
        results = Results(tmp_path, journal)
        results.begin(jobs, silent)
        for job in jobs:
            texts = [(tmp_path / file["name"]).read_text() for file in results.entry(job)["files"]]
            assert texts == [f"film of {job.name}, {number}" for number in (0, 1)]
    assert len(list(tmp_path.iterdir())) == 2 * len(jobs) + 2


def test_a_job_may_have_the_name_of_another_ones_second_file(tmp_path: Path) -> None:
    jobs = [Job(Request(prompt=name), name, name, f"{n:016x}") for n, name in enumerate(("a", "a_2"))]
    with Journal(tmp_path / STATE) as journal:
        results = Results(tmp_path, journal)
        results.begin(jobs, silent)
        results.commit(jobs[0], arrive(results, jobs[0]), "w")
        results.begin(jobs, silent)
        with pytest.raises(InputError, match="asked for earlier"):
            results.begin(jobs[1:], silent)
