"""A ComfyUI of our own for the time of one call: start it headless, wait until it answers, end all of it, also if we are killed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import InputError, ServerError
from .lifeline import Lifeline, bound

_WINDOWS = os.name == "nt"

# Asked in the Python that will run ComfyUI, which need not be ours. It refuses to start where torch finds
# no accelerator unless --cpu is given.
_HAS_DEVICE = (
    "import torch as t; "
    "print(bool(t.cuda.is_available() or (hasattr(t, 'xpu') and t.xpu.is_available()) "
    "or t.backends.mps.is_available() or (hasattr(t, 'npu') and t.npu.is_available())))"
)
_DEVICE_FLAGS = ("--cpu", "--directml", "--cuda-device", "--default-device", "--oneapi-device-selector")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def has_device(python: str) -> bool:
    """Whether the torch of this Python sees a GPU (or another accelerator that ComfyUI uses)."""
    done = subprocess.run([python, "-c", _HAS_DEVICE], capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ServerError(
            "this Python cannot run ComfyUI",
            file=python,
            found=reason,
            fix="give the Python of your ComfyUI with --python (in a portable ComfyUI: python_embeded/python.exe)",
        )
    return done.stdout.split()[-1] == "True"


class LocalServer:
    """ComfyUI as a child process, in a process group of its own; use it as `with LocalServer(path) as server`.

    What it writes goes to a temporary folder (`output`): the caller fetches results over HTTP. Its database
    is in memory, because ComfyUI does not start when another one holds the file.

    Args:
        comfyui: folder of ComfyUI.
        base: `--base-directory` (models, custom_nodes, input, user); ComfyUI's own folder if None.
        python: the interpreter with ComfyUI's requirements; this one if None.
        extra: arguments handed on to ComfyUI, after ours (so they win).
        timeout: seconds until it has to answer.
        log: where its output is kept; None: only for the time of the call.
        say: takes a line of progress.
    """

    def __init__(
        self,
        comfyui: Path,
        *,
        base: str | os.PathLike[str] | None = None,
        python: str | None = None,
        extra: Sequence[str] = (),
        timeout: float = 300.0,
        log: str | os.PathLike[str] | None = None,
        say: Callable[[str], None] = lambda line: None,
    ):
        self.comfyui = comfyui
        self.base = Path(base).expanduser().absolute() if base else None
        self.python = python or sys.executable
        self.extra = list(extra)
        self.timeout = timeout
        self._log = Path(log).absolute() if log else None
        self.say = say
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self._lifeline: Lifeline | None = None

    def __enter__(self) -> LocalServer:
        if self.base is not None and not (self.base / "custom_nodes").is_dir():
            raise InputError(
                "this folder cannot be ComfyUI's base directory",
                file=self.base,
                expected="a folder with custom_nodes/ (this pack in it) and models/",
                fix="correct --base-directory",
            )
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="hlwq-comfyui-"))
            self._start()
        except OSError as error:
            self.stop()
            raise ServerError(
                "ComfyUI cannot be started",
                file=os.fsdecode(error.filename) if error.filename else self.python,
                found=error.strerror or error,
                fix="correct --python, --comfyui-log or the variable TMPDIR",
            ) from error
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def log(self) -> Path:
        """Where ComfyUI's output goes; unless a place was given, it is gone after `stop`."""
        assert self._folder is not None
        return self._log or self._folder / "comfyui.log"

    def tail(self, lines: int = 25) -> str:
        """The last lines of the log, for an error's text."""
        try:
            text = self.log.read_text(errors="replace")
        except OSError:
            return ""
        text = re.sub(r"\x1b\[[0-9;]*m", "", text)  # colours
        return "\n".join("    " + line for line in text.strip().splitlines()[-lines:])

    def check(self) -> None:
        """Raise if the process has ended."""
        if self._process is not None and (code := self._process.poll()) is not None:
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            killed = code == -9
            raise ServerError(
                f"the ComfyUI that was started for this call has ended ({how}); the end of its log:\n{self.tail()}",
                fix="most likely the system ran out of memory: make the video smaller, close other programs"
                if killed
                else "mend what the log names; `--comfyui-log PATH` keeps the whole log",
            )

    def command(self, port: int, cpu: bool) -> list[str]:
        """The command line of ComfyUI."""
        assert self._folder is not None
        args = [self.python, "-u", str(self.comfyui / "main.py"), "--listen", "127.0.0.1", "--port", str(port)]
        args += ["--disable-auto-launch", "--database-url", "sqlite:///:memory:"]
        args += ["--output-directory", str(self._folder / "output"), "--temp-directory", str(self._folder)]
        if self.base is not None:
            args += ["--base-directory", str(self.base)]
        if cpu:
            args.append("--cpu")
        return args + self.extra

    def _start(self) -> None:
        assert self._folder is not None
        cpu = not any(a.split("=")[0] in _DEVICE_FLAGS for a in self.extra) and not has_device(self.python)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        (self._folder / "output").mkdir()
        self.say(f"starting ComfyUI ({self.comfyui}{', on the CPU' if cpu else ''})")
        with self.log.open("wb") as out:
            self._process = subprocess.Popen(
                bound(self.command(port, cpu)),
                cwd=self.comfyui,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                # A group of its own: Ctrl-C in the terminal then reaches us alone, and we end all of it.
                start_new_session=not _WINDOWS,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        self._lifeline = Lifeline(self._process, self._folder)
        begun = time.monotonic()
        while not self._answers():
            self.check()
            if time.monotonic() - begun > self.timeout:
                raise ServerError(
                    f"ComfyUI did not answer within {self.timeout:.0f} s; the end of its log:\n{self.tail()}",
                    fix="wait longer with --start-timeout SECONDS, or mend what the log names",
                )
            time.sleep(0.2)
        self.say(f"ComfyUI answers at {self.url} after {time.monotonic() - begun:.0f} s")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + "/system_stats", timeout=5) as answer:
                return "system" in json.load(answer)
        except (urllib.error.URLError, OSError, ValueError):
            return False

    def stop(self, grace: float = 5.0) -> None:
        """End the process and every child it has; safe to call twice."""
        process, self._process = self._process, None
        if process is not None:
            self._end(process, hard=False)
            try:
                process.wait(grace)
            except subprocess.TimeoutExpired:
                pass
            self._end(process, hard=True)  # the server itself, or what it started and left behind
            # One that hangs in the kernel is no reason to leave the folder, nor to hide why we stop.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        lifeline, self._lifeline = self._lifeline, None
        if lifeline is not None:
            lifeline.release()

    def _end(self, process: subprocess.Popen[bytes], hard: bool) -> None:
        if _WINDOWS:  # taskkill walks the tree from the parent, so it has to come while that lives
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True)
            return
        try:
            os.killpg(process.pid, signal.SIGKILL if hard else signal.SIGTERM)
        except (ProcessLookupError, PermissionError):  # nobody left (macOS says it the second way)
            pass
