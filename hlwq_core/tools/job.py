"""Long work that says how far it is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

# Called with bytes done, bytes in all, and what is being done; may raise to stop the work.
Progress = Callable[[int, int, str], None]
# The last word, when all is done and has its name.
DONE = "done"


class Tally:
    """Counts what is done, and tells it.

    Args:
        progress: whom to tell; None: nobody.
        total: bytes in all.

    Attributes:
        done: bytes done.
        stopped: what `progress` raised: the caller's own, no failure of the work.
    """

    def __init__(self, progress: Progress | None, total: int = 0):
        self._progress = progress
        self.total = total
        self.done = 0
        self.stopped: BaseException | None = None

    def add(self, nbytes: int, text: str) -> None:
        """So many more bytes are done. What was estimated too low ends at the total."""
        self.done += nbytes
        if self._progress is None:
            return
        try:
            self._progress(min(self.done, self.total), self.total, text)
        except BaseException as error:
            self.stopped = error
            raise

    def tell(self, text: str) -> None:
        """The same as before, with another text."""
        self.add(0, text)

    def end(self) -> None:
        """All is done, and has its name: what the caller's own raises now, but for a signal of the terminal, is told to nobody."""
        self.done = self.total
        with contextlib.suppress(Exception):
            self.tell(DONE)
        self.stopped = None
