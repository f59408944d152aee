"""Progress of many jobs on a terminal: one bar with the rate an hour and the time left; elsewhere a line a job."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

from tqdm import tqdm


class BatchProgress:
    """Shows what a batch's driver tells; use it as `with BatchProgress() as progress`.

    Args:
        quiet: show nothing.
        stream: where it is written.
    """

    def __init__(self, quiet: bool = False, stream: TextIO | None = None):
        self.quiet = quiet
        self.stream = stream or sys.stderr
        self._bar: tqdm[None] | None = None
        self._total = self._done = self._begun_with = self._failed = self._workers = 0
        self._begun = time.monotonic()
        self._first: float | None = None  # when the first job of this call was made

    def __enter__(self) -> BatchProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def begin(self, total: int, done: int) -> None:
        """How many jobs there are, and how many are done with."""
        self._total, self._done, self._begun_with = total, done, done
        self._begun = time.monotonic()
        if done and not self.quiet:
            self.say(f"{done:,} of {total:,} jobs are done with; going on")
        if not self.quiet and self.stream.isatty():
            columns, lines = shutil.get_terminal_size((100, 24))  # some terminals say that they have 0
            self._bar = tqdm(
                total=total,
                initial=done,
                file=self.stream,
                unit="job",
                ncols=min(columns - 1, 120) if columns > 1 else 100,
                nrows=lines or 24,
                smoothing=0,
                bar_format="{n_fmt}/{total_fmt} {bar:20} {elapsed} {postfix}",
            )
            self._show()

    def made(self, name: str, worker: str, seconds: float) -> None:
        """A job has its output."""
        self._done += 1
        self._line(f"{name}: made by {worker} in {seconds:.1f} s")

    def failed(self, name: str, error: str, left: int) -> None:
        """A job failed; it is tried `left` times more."""
        if not left:
            self._done += 1
            self._failed += 1
        again = f" (it is tried {left} more time{'s' * (left > 1)})" if left else ""
        if not self.quiet:
            self.say(f"{name} failed{again}: {error}")
        self._show()

    def workers(self, ready: int) -> None:
        """So many workers are ready."""
        self._workers = ready
        self._show()

    def say(self, line: str) -> None:
        """A line for a person."""
        if self.quiet:
            return
        if self._bar is not None:
            tqdm.write(line, file=self.stream)
        else:
            print(line, file=self.stream, flush=True)

    def rate(self) -> float | None:
        """Jobs an hour of this call; None before the first."""
        new = self._done - self._begun_with
        seconds = time.monotonic() - self._begun
        return new / seconds * 3600 if new and seconds else None

    def summary(self) -> str:
        """What the bar says behind itself: workers, failures, jobs an hour, time left."""
        parts = [f"{self._workers} worker{'s' * (self._workers != 1)}"]
        if self._failed:
            parts.append(f"{self._failed:,} failed")
        if rate := self.rate():
            left = (self._total - self._done) / rate * 3600
            parts += [f"{rate:,.1f}/h", f"{duration(left)} left"]
        return ", ".join(parts)

    def _line(self, text: str) -> None:
        if self._bar is None and not self.quiet:
            self.say(f"[{self._done:,}/{self._total:,}] {text}; {self.summary()}")
        self._show()

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(self.summary(), refresh=False)
            self._bar.update(self._done - self._bar.n)
            self._bar.refresh()


def duration(seconds: float) -> str:
    """A length of time as people say it: 40 s, 12 min, 3 h 05 min, 2 d 4 h."""
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes:.0f} min"
    if hours < 36:
        return f"{int(hours)} h {int(minutes) % 60:02d} min"
    return f"{int(days)} d {int(hours) % 24} h"
