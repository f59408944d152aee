"""A process that outlives us by a moment: it ends our ComfyUI and removes its folder if we are gone without having done so.

Started by `LocalServer` as a script, with nothing but the standard library. Its standard input is a pipe that we alone write to:
`pid N` names the process, `done` says that there is nothing to do, the pipe's end without that word that we were killed. It is there
before the folder is, so nothing is left whenever that happens.

    python watcher.py FOLDER [apart]

`apart`: it becomes no child of ours, because some who end a process (Ray) end its children first.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time


def began(pid: int) -> str | None:
    """What tells a process from a later one of the same number, on Linux: when it began."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError):
        return None


def end(pid: int) -> None:
    """End a process and its group (on Windows: its tree), and wait until they are gone."""
    if os.name == "nt":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(pid)], capture_output=True, check=False)
        return
    for _ in range(100):
        try:
            os.killpg(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # nobody left (macOS says it the second way)
            return
        time.sleep(0.05)


def main() -> None:
    """Wait for the pipe's end."""
    folder = sys.argv[1]
    if sys.argv[2:] == ["apart"] and hasattr(os, "fork") and os.fork():
        os._exit(0)
    process: tuple[int, str | None] | None = None
    for line in sys.stdin.buffer:
        if line.startswith(b"done"):
            return
        if line.startswith(b"pid "):
            pid = int(line[4:])
            process = pid, began(pid)
    if process is not None and began(process[0]) == process[1]:
        end(process[0])
    # Whatever else writes there ends soon; on a busy machine not at once.
    for wait in (0.1, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            return
        time.sleep(wait)


if __name__ == "__main__":
    main()
