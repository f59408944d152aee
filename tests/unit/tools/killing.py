"""Work that dies at a rename: in a process forked from a small one without threads, which a fork would leave locked."""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

REPO = pathlib.Path(__file__).resolve().parents[3]
KILLED = 9
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")


@functools.cache
def _forker() -> subprocess.Popen[str]:
    """The small process, for as long as the tests run."""
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "0"}
    process = subprocess.Popen(
        [sys.executable, str(pathlib.Path(__file__))],
        cwd=REPO,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(process.kill)
    return process


def killed_at(number: int, function: str, *args: Any, **kwargs: Any) -> bool:
    """Call `module:function` in a process that dies before its `number`-th change of a folder; False: it came to its end."""
    process = _forker()
    assert process.stdin and process.stdout
    print(json.dumps([number, function, [str(a) for a in args], kwargs]), file=process.stdin, flush=True)
    code = int(process.stdout.readline())
    assert code in (0, KILLED), code
    return code == KILLED


def _dying(change: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    def replacement(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            os._exit(KILLED)
        return change(*args, **kwargs)

    return replacement


def _serve() -> None:
    for line in sys.stdin:
        number, function, args, kwargs = json.loads(line)
        module, _, name = function.partition(":")
        work = getattr(importlib.import_module(module), name)
        child = os.fork()
        if child == 0:
            left = [number]
            for change in ("replace", "rename", "link", "rmdir", "unlink"):
                dying = _dying(getattr(os, change), left)
                setattr(os, change, dying)
                if accessor := getattr(pathlib, "_NormalAccessor", None):  # Python 3.10's holds os's functions itself
                    setattr(accessor, change, staticmethod(dying))
            try:
                work(*args, **kwargs)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
