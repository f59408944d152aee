"""What lies in the model folders, as threads keep it: ComfyUI asks for node definitions in its event loop, and there only a
finished list is read.

A folder may be on a network drive that hangs, hold a hundred thousand files, or links that never end. Each folder is looked
through by a thread of its own (`hlwq_core.checkpoints.find`), so that one that hangs hides no other; whoever asks gets what is
known, and a bounded wait at most. Asking starts the next look: what was added shows shortly after a refresh.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..hlwq_core.checkpoints.find import Memory, Scan, Skipped, scan
from ..hlwq_core.errors import printable

_log = logging.getLogger("hlwq")

# Seconds that the first answer after ComfyUI's start may take, all nodes together.
FIRST = 1.5
# Seconds that a later one may take, all nodes together, for folders that were looked through so quickly the last time.
AGAIN = 0.1
# Seconds for one who runs a node, or names something that no list has.
FRESH = 2.0
# A folder that says nothing for so long hangs: paths in it are not even asked whether they are there.
_HANGS = 5.0
_LOGGED = 50

_T = TypeVar("_T")
_changed = threading.Condition()
_folders: dict[str, ModelFolder] = {}
_first_answer_until: float | None = None
_answer_until = 0.0


class ModelFolder:
    """One model folder, and the thread that looks through it when it is asked to.

    Attributes:
        scan: what was found; of the first look also while it lasts.
        finished: whether it was once looked through to its end.
        seconds: how long that took.
    """

    def __init__(self, root: str):
        self.scan = Scan(root)
        self.finished = False
        self.seconds = 0.0
        self._asked = 0
        self._done = 0
        self._ended = 0.0
        self._begun: float | None = None
        self._memory = Memory()

    def ask(self, *, no_older_than: float = 0.0) -> int:
        """Have it looked through again, unless that was done a moment ago; the number to give to `is_done`."""
        with _changed:
            if self._begun is None and self._done and time.monotonic() - self._ended < no_older_than:
                return self._done
            self._asked += 1
            if self._begun is None:
                self._begun = time.monotonic()
                threading.Thread(target=self._run, name="hlwq-listing", daemon=True).start()
            return self._asked

    def is_done(self, number: int) -> bool:
        return self._done >= number

    def busy(self) -> float:
        """Seconds that the look that goes on has taken so far; 0 if none does."""
        begun = self._begun
        return 0.0 if begun is None else time.monotonic() - begun

    def hangs(self) -> bool:
        """Whether that is suspiciously long."""
        return self.busy() > max(_HANGS, 3 * self.seconds)

    def _run(self) -> None:
        while True:
            with _changed:
                number = self._asked
                self._begun = begun = time.monotonic()
            try:
                found = scan(self.scan.root, self._memory, told=None if self.finished else self._grow)
            except Exception as error:  # no fault of ours may take the nodes' definitions down
                _log.exception("HLWQ: %s could not be looked through", self.scan.root)
                found = Scan(self.scan.root, skipped=(Skipped(self.scan.root, f"{type(error).__name__}: {error}"),))
            before = set(self.scan.skipped) if self.finished else set()
            _tell(found.root, [item for item in found.skipped if item not in before])
            with _changed:
                # The same object as long as nothing changes: what is derived from it is kept by it.
                if found != self.scan:
                    self.scan = found
                self.finished = True
                self._done = number
                self._ended = time.monotonic()
                self.seconds = self._ended - begun
                last = self._asked == number
                self._begun = None if last else self._ended
                _changed.notify_all()
            if last:
                return

    def _grow(self, found: Scan) -> None:
        with _changed:
            self.scan = found


def _tell(root: str, news: list[Skipped]) -> None:
    if news:
        lines = [f"  {item}" for item in news[:_LOGGED]]
        if len(news) > _LOGGED:
            lines.append(f"  … and {len(news) - _LOGGED:,} more")
        _log.warning("HLWQ does not list, of %s:\n%s", root, "\n".join(lines))


def _of(roots: Iterable[str]) -> list[ModelFolder]:
    with _changed:
        return [_folders.setdefault(root, ModelFolder(root)) for root in dict.fromkeys(roots)]


def kept(roots: Iterable[str]) -> list[ModelFolder]:
    """The model folders as they are known, for who answers in the event loop; the next look is started.

    Waits for the first look at ComfyUI's start, `FIRST` seconds at most in all; later a moment, and only for folders that are
    looked through in a moment.
    """
    global _first_answer_until, _answer_until
    now = time.monotonic()
    folders = _of(roots)
    if _first_answer_until is None:
        _first_answer_until = now + FIRST
    if now > _answer_until + 1.0:
        _answer_until = now + AGAIN
    numbers = {
        # ComfyUI asks node by node: one look answers them all.
        id(folder): folder.ask(no_older_than=min(2.0, 10 * folder.seconds + 0.02))
        for folder in folders
    }
    new = [folder for folder in folders if not folder.finished]
    quick = [folder for folder in folders if folder.finished and max(folder.seconds, folder.busy()) < AGAIN]
    _wait(new, numbers, _first_answer_until)
    _wait(quick, numbers, _answer_until)
    return folders


def fresh(roots: Iterable[str]) -> list[ModelFolder]:
    """The model folders as they are now, after `FRESH` seconds at most; a folder that hangs is not waited for."""
    folders = _of(roots)
    numbers = {id(folder): folder.ask() for folder in folders}
    _wait([folder for folder in folders if not folder.hangs()], numbers, time.monotonic() + FRESH)
    return folders


def _wait(folders: list[ModelFolder], numbers: dict[int, int], until: float) -> None:
    with _changed:
        _changed.wait_for(
            lambda: all(folder.is_done(numbers[id(folder)]) for folder in folders), max(0.0, until - time.monotonic())
        )


@dataclass(frozen=True)
class _Derived:
    scans: tuple[Scan, ...]
    value: object


_derived: dict[str, _Derived] = {}


def derive(key: str, folders: list[ModelFolder], make: Callable[[tuple[Scan, ...]], _T]) -> _T:
    """What `make` gives for the folders' scans; kept under `key` as long as these are the same objects."""
    scans = tuple(folder.scan for folder in folders)
    last = _derived.get(key)
    if last is None or len(last.scans) != len(scans) or any(a is not b for a, b in zip(last.scans, scans)):
        last = _derived[key] = _Derived(scans, make(scans))
    return last.value  # type: ignore[return-value]


def not_listed() -> list[str]:
    """What the lists pass over, and why, a line each: for people, without the folders above the model folder."""
    lines = []
    for folder in list(_folders.values()):
        name = os.path.basename(folder.scan.root)
        if not folder.finished:
            lines.append(f"{name}: still being looked through; press R in a while")
        elif folder.hangs():
            lines.append(f"{name}: does not answer; the list is older")
        lines += [printable(f"{name}/{folder.scan.label(item.path)}: {item.reason}") for item in folder.scan.skipped]
    return lines


def answers(root: Path) -> bool:
    """Whether a model folder may be asked for a path without waiting for a drive that hangs."""
    folder = _folders.get(os.fspath(root))
    return folder is None or not folder.hangs()
