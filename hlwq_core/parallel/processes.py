"""Processes that compute with this one: started, spoken with in lines of JSON, and gone when this one is."""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..client.lifeline import Lifeline, folder_watched_over

_log = logging.getLogger("hlwq")
Message = dict[str, Any]
# A worker says so often that it is alive; who was silent for so long is not.
HEARTBEAT, SILENCE = 2.0, 45.0
LINES_KEPT = 40


class Worker:
    """One of them, as the process sees it that started it.

    Args:
        rank: its number.
        command, environment: of the process.
        folder: removed when this process is killed; its log goes there.
        heard: called in another thread with each message, and with None when the process has ended.
    """

    def __init__(
        self,
        rank: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        heard: Callable[[Worker, Message | None], None],
    ):
        self.rank = rank
        self._heard = heard
        self._writing = threading.Lock()
        self._log = folder / f"rank{rank}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                list(command),
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=os.name != "nt",  # Ctrl-C in the terminal reaches us alone, and we end it
            )
        self._lifeline = Lifeline(folder)
        self._lifeline.watch(self._process, waits=False)
        self.last_heard = time.monotonic()
        threading.Thread(target=self._listen, name=f"hlwq-rank{rank}", daemon=True).start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, message: Message) -> None:
        """Say something; whoever has ended does not hear it."""
        with self._writing, contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.last_heard = time.monotonic()
            try:
                message = json.loads(line)
            except ValueError:
                continue
            if isinstance(message, dict) and "alive" not in message:
                self._heard(self, message)
        self._heard(self, None)

    def how_it_ended(self) -> str:
        """In words, with the end of its log."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        code = self._process.poll()
        if code is None:
            how = "its process closed its pipe"
        else:
            how = f"its process ended ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"
        lines = self.log_end()
        return f"{how}; the end of its log:\n{lines}" if lines else how

    def log_end(self) -> str:
        """The last lines that it wrote."""
        try:
            with self._log.open(encoding="utf-8", errors="replace") as log:
                return "".join(collections.deque(log, LINES_KEPT)).strip()
        except OSError:
            return ""

    def kill(self) -> None:
        """Have it ended, and whatever it started."""
        if os.name == "nt":
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(self.pid)], capture_output=True, check=False)
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """The same, and wait until it is gone; safe to call twice."""
        self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        assert self._process.stdin is not None
        with self._writing, contextlib.suppress(OSError, ValueError):
            self._process.stdin.close()
        self._lifeline.release()


def session_folder() -> tuple[Path, Lifeline]:
    """Where the processes of a session meet; it goes with this process, whatever ends it, or by hand before `Lifeline.release`."""
    return folder_watched_over("hlwq-cards-")


class Leader:
    """The process that started this one, as this one sees it. This one ends when that does.

    Args:
        output: the file descriptor to speak to; what is printed goes to the log.
    """

    def __init__(self, output: int):
        self._output = os.fdopen(output, "wb")
        self._speaking = threading.Lock()
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        source = os.fdopen(os.dup(0), "rb")
        for target, name in ((self._hear, "hlwq-leader"), (self._live, "hlwq-alive")):
            threading.Thread(target=target, args=(source,), name=name, daemon=True).start()

    def receive(self) -> Message:
        """The next message; waits for it."""
        return self._messages.get()

    def send(self, message: Message) -> None:
        """Say something."""
        try:
            with self._speaking:
                self._output.write(json.dumps(message).encode() + b"\n")
                self._output.flush()
        except OSError:
            os._exit(1)

    def _hear(self, source: Any) -> None:
        try:
            for line in source:
                self._messages.put(json.loads(line))
        finally:
            os._exit(1)  # at once, also out of an exchange that nobody will answer any more

    def _live(self, _: Any) -> None:
        while True:
            self.send({"alive": True})
            time.sleep(HEARTBEAT)
