"""What a batch shows: a line a job where nobody looks, one bar on a terminal, nothing for programs."""

from __future__ import annotations

import io

import pytest

from hlwq_core.terminal.batch_progress import BatchProgress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def play(stream: io.StringIO, quiet: bool = False) -> str:
    with BatchProgress(quiet, stream) as progress:
        progress.begin(4, 1)
        progress.workers(2)
        progress.made("rain", "gpu0", 12.34)
        progress.failed("sea", "no such codec", 1)
        progress.failed("sea", "no such codec", 0)
        progress.say("gpu1 is lost")
    return stream.getvalue()


def test_a_line_a_job_in_a_log() -> None:
    lines = play(io.StringIO()).splitlines()
    assert lines[0] == "1 of 4 jobs are done with; going on"
    assert lines[1].startswith("[2/4] rain: made by gpu0 in 12.3 s; 2 workers, ") and "/h, " in lines[1]
    assert lines[2:] == [
        "sea failed (it is tried 1 more time): no such codec",
        "sea failed: no such codec",
        "gpu1 is lost",
    ]


def test_one_bar_on_a_terminal() -> None:
    text = play(Terminal())
    assert "3/4" in text and "2 workers, 1 failed" in text and " left" in text
    assert "made by" not in text and "gpu1 is lost" in text


def test_nothing_for_programs() -> None:
    assert play(Terminal(), quiet=True) == play(io.StringIO(), quiet=True) == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(5.4, "5 s"), (600, "10 min"), (7500, "2 h 05 min"), (300_000, "3 d 11 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
