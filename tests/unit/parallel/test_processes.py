"""Processes that compute with this one: what they hear and say, and that none outlives the one that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hlwq_core.parallel.processes import Worker

REPO = Path(__file__).resolve().parents[3]
# Answers what it is told; its other thread sees the pipe's end while this one is busy for ever.
CHILD = """
import os, sys, time
from hlwq_core.parallel.processes import Leader
output = os.dup(1); os.dup2(2, 1)
leader = Leader(output)
leader.send({"pid": os.getpid()})
print("a line of the log", flush=True)
while True:
    told = leader.receive()
    if told.get("hang"):
        time.sleep(1000)
    if told.get("die"):
        os.kill(os.getpid(), 9)
    leader.send({"heard": told})
"""
PARENT = """
import sys, time
from pathlib import Path
from hlwq_core.parallel.processes import Worker
worker = Worker(1, [sys.executable, "-c", sys.argv[1]], __import__("os").environ, Path(sys.argv[2]), lambda w, m: print(m, flush=True))
worker.send({"hang": True})
time.sleep(1000)
"""


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def soon(what: Callable[[], bool], seconds: float = 15) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if what():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def started(tmp_path: Path) -> Iterator[tuple[Worker, list[Any]]]:
    said: list[Any] = []
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    worker = Worker(1, [sys.executable, "-c", CHILD], environment, tmp_path, lambda _, message: said.append(message))
    assert soon(lambda: bool(said), 60)
    yield worker, said
    worker.end()


def test_it_answers_and_ends(started: tuple[Worker, list[Any]]) -> None:
    worker, said = started
    worker.send({"do": "this", "text": "ü\n"})
    assert soon(lambda: len(said) == 2) and said[1] == {"heard": {"do": "this", "text": "ü\n"}}
    assert "a line of the log" in worker.log_end()
    worker.end()
    worker.end()
    assert gone(worker.pid) and soon(lambda: said[-1] is None)


def test_how_it_ended_is_told(started: tuple[Worker, list[Any]]) -> None:
    worker, said = started
    worker.send({"die": True})
    assert soon(lambda: said[-1] is None)
    assert "SIGKILL" in worker.how_it_ended() and "a line of the log" in worker.how_it_ended()
    worker.send({"do": "nothing"})  # nobody hears it


def test_it_says_that_it_lives(started: tuple[Worker, list[Any]]) -> None:
    worker, said = started
    first = worker.last_heard
    worker.send({"hang": True})
    assert soon(lambda: worker.last_heard > first + 3) and len(said) == 1
    assert not [t for t in threading.enumerate() if t.name == "hlwq-rank1" and not t.daemon]


@pytest.mark.skipif(os.name == "nt", reason="kill -9")
def test_it_dies_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    folder = tmp_path / "session"
    folder.mkdir()
    command = [sys.executable, "-c", PARENT, CHILD, str(folder)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline().partition(": ")[2].strip("}\n"))
        assert not gone(pid)
        time.sleep(0.5)
        os.kill(parent.pid, signal.SIGKILL)
        assert soon(lambda: gone(pid)) and soon(lambda: not folder.exists())
