"""A ComfyUI of our own for the time of one call: start it headless, wait until it answers, end all of it, also if we are killed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..errors import InputError, ServerError
from .lifeline import Lifeline, bound, folder_watched_over

_WINDOWS = os.name == "nt"

# Asked in the Python that will run ComfyUI, which need not be ours. It refuses to start where torch finds
# no accelerator unless --cpu is given.
_HAS_DEVICE = (
    "import torch as t; "
    "print(bool(t.cuda.is_available() or (hasattr(t, 'xpu') and t.xpu.is_available()) "
    "or t.backends.mps.is_available() or (hasattr(t, 'npu') and t.npu.is_available())))"
)
# The cards as torch counts them: one a line, what the library of the cards is (cuda, hip), and a name.
_CARDS = (
    "import torch as t; "
    "[print('hip' if t.version.hip else 'cuda', t.cuda.get_device_name(i)) for i in range(t.cuda.device_count())]"
)
_DEVICE_FLAGS = ("--cpu", "--directml", "--cuda-device", "--default-device", "--oneapi-device-selector")


_given: set[int] = set()


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at this moment, and that this process has not been given before."""
    for _ in range(100):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = int(s.getsockname()[1])
        if port not in _given:
            break
    _given.add(port)
    return port


def has_device(python: str) -> bool:
    """Whether the torch of this Python sees a GPU (or another accelerator that ComfyUI uses)."""
    return _ask(python, _HAS_DEVICE).split()[-1] == "True"


def cards(python: str) -> list[dict[str, str]]:
    """The GPUs that the torch of this Python sees: for each the variables that leave a child with that one alone.

    What the variable of this process leaves of them is counted, so the child's is of the same names.
    """
    found = []
    for index, line in enumerate(_ask(python, _CARDS).splitlines()):
        names = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES") if line.startswith("hip") else ("CUDA_VISIBLE_DEVICES",)
        given = next((os.environ[name] for name in names if os.environ.get(name)), "")
        visible = [name.strip() for name in given.split(",") if name.strip()]
        found.append(dict.fromkeys(names, visible[index] if index < len(visible) else str(index)))
    return found


def _ask(python: str, code: str) -> str:
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ServerError(
            "this Python cannot run ComfyUI",
            file=python,
            found=reason,
            fix="give the Python of your ComfyUI with --python (in a portable ComfyUI: python_embeded/python.exe)",
        )
    return done.stdout


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
        env: variables of the child, besides ours.
        cpu: whether it gets `--cpu`; None: where torch sees no GPU, and `extra` names no device.
        alone: give it a base directory of its own, with links to the models, custom nodes and inputs of `base`: so that
            several run beside each other.
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
        env: Mapping[str, str] | None = None,
        cpu: bool | None = None,
        alone: bool = False,
    ):
        self.comfyui = comfyui
        self.env = dict(env or {})
        self.cpu = cpu
        self.alone = alone
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
        self.launch()
        self.wait()
        return self

    def launch(self) -> None:
        """Start the process; `wait` has to follow, or `stop`. Called by the main thread, the kernel binds it to us."""
        if self.base is not None and not (self.base / "custom_nodes").is_dir():
            raise InputError(
                "this folder cannot be ComfyUI's base directory",
                file=self.base,
                expected="a folder with custom_nodes/ (this pack in it) and models/",
                fix="correct --base-directory",
            )
        try:
            self._folder, self._lifeline = folder_watched_over("hlwq-comfyui-")
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

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def folder(self) -> Path:
        """A temporary folder that goes with the process."""
        assert self._folder is not None
        return self._folder

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

    def tidy(self, limit: int = 4 << 30) -> None:
        """Remove the oldest outputs where they come to more than `limit` bytes: whoever wants them has fetched them."""
        if self._folder is None:
            return
        found = []
        # os.walk passes over folders that are renamed meanwhile, as rglob does not.
        for folder, _, names in os.walk(self._folder / "output"):
            for path in (Path(folder) / name for name in names):
                with contextlib.suppress(OSError):
                    kind = path.lstat()
                    if stat.S_ISREG(kind.st_mode):
                        found.append((kind.st_mtime, kind.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found)[:-8]:
            if total <= limit:
                return
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size

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
        base = self._folder / "base" if self.alone else self.base
        if base is not None:
            args += ["--base-directory", str(base)]
        if cpu:
            args.append("--cpu")
        return args + self.extra

    def _start(self) -> None:
        assert self._folder is not None
        cpu = self.cpu
        if cpu is None:
            cpu = not any(a.split("=")[0] in _DEVICE_FLAGS for a in self.extra) and not has_device(self.python)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        (self._folder / "output").mkdir()
        if self.alone:
            _link_base(self.base or self.comfyui, self._folder / "base")
        self.say(f"starting ComfyUI ({self.comfyui}{', on the CPU' if cpu else ''})")
        with self.log.open("wb") as out:
            self._process = subprocess.Popen(
                bound(self.command(port, cpu)),
                cwd=self.comfyui,
                stdin=subprocess.DEVNULL if _WINDOWS else subprocess.PIPE,
                bufsize=0,
                env=os.environ | self.env,
                stdout=out,
                stderr=subprocess.STDOUT,
                # A group of its own: Ctrl-C in the terminal then reaches us alone, and we end all of it.
                start_new_session=not _WINDOWS,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        assert self._lifeline is not None
        self._lifeline.watch(self._process)

    def wait(self) -> None:
        """Wait until it answers; where it does not it is ended.

        Raises:
            ServerError: it has ended, or took too long; with the end of its log.
        """
        begun = time.monotonic()
        try:
            while not self._answers():
                if self._process is None:
                    raise ServerError("ComfyUI was stopped before it answered", fix="start it again")
                self.check()
                if time.monotonic() - begun > self.timeout:
                    raise ServerError(
                        f"ComfyUI did not answer within {self.timeout:.0f} s; the end of its log:\n{self.tail()}",
                        fix="wait longer with --start-timeout SECONDS, or mend what the log names",
                    )
                time.sleep(0.2)
        except BaseException:
            self.stop()
            raise
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


def _link_base(base: Path, own: Path) -> None:
    """A base directory that is like another one, and where nothing that is written gets into the other.

    What a workflow may read is linked: models, custom nodes, and each input by itself, since uploads come beside them.
    """
    for folder in ("input", "user", "output", "temp"):
        (own / folder).mkdir(parents=True)
    for folder in ("models", "custom_nodes"):
        if (base / folder).is_dir():
            _link(base / folder, own / folder)
    if (base / "input").is_dir():
        for path in (base / "input").iterdir():
            if path.name != "hlwq":  # where our uploads go
                _link(path, own / "input" / path.name)


def _link(path: Path, link: Path) -> None:
    try:
        link.symlink_to(path.absolute(), target_is_directory=path.is_dir())
    except OSError:
        if not _WINDOWS:
            raise
        # Windows lets not everybody make links; a junction everybody may make.
        if path.is_dir():
            import _winapi

            _winapi.CreateJunction(str(path.absolute()), str(link))  # type: ignore[attr-defined, unused-ignore]
        else:
            shutil.copyfile(path, link)
