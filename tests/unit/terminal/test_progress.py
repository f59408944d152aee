"""The bar of long work: shown on every terminal with speed and time left, never where nobody looks."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import sys
import threading
import time

import pytest

from hlwq_core.terminal.progress import TerminalProgress


def work(progress: TerminalProgress) -> None:
    with progress:
        for done in range(0, 101, 10):
            progress(done * 10_000_000, 1_000_000_000, "blocks.7.attn1.to_q.weight")
            time.sleep(0.08)


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo terminals")
@pytest.mark.parametrize(("lines", "columns"), [(24, 100), (0, 0), (24, 300)])
def test_speed_and_time_left_on_a_terminal(monkeypatch: pytest.MonkeyPatch, lines: int, columns: int) -> None:
    import fcntl
    import pty
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    monkeypatch.delenv("COLUMNS", raising=False)
    read: list[bytes] = []

    def reader() -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while data := os.read(master, 1 << 16):
                read.append(data)

    thread = threading.Thread(target=reader)
    thread.start()
    with open(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        work(TerminalProgress())
    thread.join(10)
    os.close(master)
    shown = b"".join(read).decode()
    assert "B/s" in shown and "1.00G/1.00G" in shown and "to_q.weight" in shown, shown
    assert any(f"{p}%" in shown for p in (60, 70, 80, 90)) and "<00:" in shown, "the time left"
    assert all(len(line) <= (columns or 100) for line in shown.replace("\n", "\r").split("\r"))


@pytest.mark.parametrize("quiet", [False, True])
def test_nothing_where_nobody_looks(monkeypatch: pytest.MonkeyPatch, quiet: bool) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    work(TerminalProgress(quiet))
    assert stream.getvalue() == ""
