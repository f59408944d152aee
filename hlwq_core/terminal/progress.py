"""Progress of long work on a terminal: a bar with speed and time left, on stderr; nothing where nobody looks."""

from __future__ import annotations

import shutil
from types import TracebackType

from tqdm import tqdm


class TerminalProgress:
    """A bar that library functions call as `progress(done, total, text)`, in bytes.

    Args:
        quiet: show nothing (for `--json`); nothing is shown either when stderr is no terminal.
    """

    def __init__(self, quiet: bool = False):
        # Some terminals say that they have 0 columns and lines; tqdm itself would then show nothing.
        columns, lines = shutil.get_terminal_size((100, 24))
        self._bar = tqdm(
            unit="B",
            unit_scale=True,
            unit_divisor=1000,
            ncols=min(columns - 1, 120),
            nrows=lines,
            disable=True if quiet else None,
            delay=0.5,
        )

    def __enter__(self) -> TerminalProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def __call__(self, done: int, total: int, text: str) -> None:
        self._bar.total = total
        self._bar.set_postfix_str(text[-40:], refresh=False)
        self._bar.update(done - self._bar.n)
