"""A child process that does not outlive us, whatever ends us: kill -9 included, which no handler of ours sees.

Three ways, because none reaches everywhere: on Linux the kernel signals the child (`PR_SET_PDEATHSIG`), on Windows it lies in a
job that ends with our last handle, and everywhere a watcher waits at the end of a pipe, ends the child's whole group and removes
its folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

# Asks the kernel to be killed with its parent, waits until it is watched over, and becomes the command. The parent may be gone
# at any moment until then.
_BOUND = """
import ctypes, os, sys
if sys.argv[1] == "bind":
    try:
        ctypes.CDLL(None).prctl(1, 9)
    except (OSError, AttributeError):
        pass
if os.read(0, 1) != b"g":
    sys.exit(1)
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def bound(command: Sequence[str]) -> list[str]:
    """The command as one that begins when `Lifeline` says so, and that the kernel kills with us, where it can. Its standard input
    has to be a pipe. The kernel counts threads, not processes, so only the main thread binds a child to itself.

    Raises:
        FileNotFoundError: there is no such program.
    """
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command[0])
    if os.name == "nt":
        return list(command)
    main = sys.platform.startswith("linux") and threading.current_thread() is threading.main_thread()
    return [sys.executable, "-I", "-S", "-c", _BOUND, "bind" if main else "free", *command]


class Lifeline:
    """Watches over a folder and a child, and lets the child begin.

    Args:
        folder: what is removed when we are gone; it need not be there yet.
    """

    def __init__(self, folder: Path):
        self._close_job: Callable[[], object] | None = None
        watcher = [sys.executable, "-I", "-S", str(Path(__file__).with_name("watcher.py"))]
        self._watcher = subprocess.Popen(
            [*watcher, str(folder), "apart"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # What is sent to our group, Ctrl-C or a kill, does not reach it.
            start_new_session=os.name != "nt",
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        if os.name != "nt":
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._watcher.wait(20)  # it goes on as nobody's child

    def watch(self, process: subprocess.Popen[bytes], waits: bool = True) -> None:
        """End a child with us.

        Args:
            process: the child, the first of a process group of its own.
            waits: whether it is of a `bound` command, and waits for us. One that is not has to end when its standard input does.
        """
        self._close_job = _windows_job(process) if os.name == "nt" else None
        assert self._watcher.stdin is not None
        with contextlib.suppress(OSError):  # the watcher was ended: the kernel's ways are left
            self._watcher.stdin.write(b"pid %d\n" % process.pid)
            self._watcher.stdin.flush()
        if waits and process.stdin is not None:
            with contextlib.suppress(OSError):  # it has ended, and says why elsewhere
                process.stdin.write(b"go")
            with contextlib.suppress(OSError):
                process.stdin.close()

    def release(self) -> None:
        """The child has been ended and its folder removed: nothing is left to do."""
        try:
            self._watcher.communicate(b"done\n", timeout=10)
        except (OSError, ValueError, subprocess.TimeoutExpired):
            self._watcher.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._watcher.wait(5)
        if self._close_job is not None:
            self._close_job()


def folder_watched_over(prefix: str) -> tuple[Path, Lifeline]:
    """A temporary folder of our own, and what removes it when we are gone: it is there before the folder is.

    Raises:
        OSError: there is no room for it, or no such folder for temporary files.
    """
    folder = Path(tempfile.gettempdir()) / f"{prefix}{secrets.token_hex(6)}"
    lifeline = Lifeline(folder)
    try:
        folder.mkdir(mode=0o700)
    except BaseException:
        lifeline.release()
        raise
    return folder, lifeline


def _windows_job(process: subprocess.Popen[bytes]) -> Callable[[], object] | None:
    """Put the child into a job that Windows ends when the last handle of it is closed: ours, whatever closes it.

    Written from the documentation of `AssignProcessToJobObject` and `JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE`; not tried.
    """
    import ctypes
    from ctypes import wintypes

    class Limits(ctypes.Structure):
        _fields_ = (
            ("user_times", ctypes.c_int64 * 2),
            ("flags", wintypes.DWORD),
            ("working_set", ctypes.c_size_t * 2),
            ("processes", wintypes.DWORD),
            ("affinity", ctypes.c_size_t),
            ("classes", wintypes.DWORD * 2),
            ("io", ctypes.c_uint64 * 6),
            ("memory", ctypes.c_size_t * 4),
        )

    kernel = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined]
    kernel.CreateJobObjectW.restype = wintypes.HANDLE
    handle = kernel.CreateJobObjectW(None, None)
    limits = Limits(flags=0x2000)  # JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
    extended = 9
    child = wintypes.HANDLE(int(process._handle))  # type: ignore[attr-defined]
    if not (
        handle
        and kernel.SetInformationJobObject(
            wintypes.HANDLE(handle), extended, ctypes.byref(limits), ctypes.sizeof(limits)
        )
        and kernel.AssignProcessToJobObject(wintypes.HANDLE(handle), child)
    ):
        return None  # in a job that allows none inside: the watcher is left

    return lambda: kernel.CloseHandle(wintypes.HANDLE(handle))
