"""Progress of a run on a terminal and in a log."""

from __future__ import annotations

import io
import os

import pytest

from hlwq_core.client.node_progress import NodeProgress

from .fake_comfy import WORKFLOW

pytestmark = pytest.mark.timeout(60)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_progress_shows_every_node(stream: io.StringIO) -> None:
    with NodeProgress(WORKFLOW, stream) as watch:
        watch("executing", {"node": "1"})
        watch("progress_state", {"nodes": {"1": {"state": "finished", "value": 1, "max": 1}}})
        for value_ in (1, 4, 8):
            watch("progress_state", {"nodes": {"2": {"state": "running", "value": value_, "max": 8}}})
        watch("progress_state", {"nodes": {"2": {"state": "finished", "value": 8, "max": 8}}})
    text = stream.getvalue()
    assert "Load it" in text and "Sample it" in text and "[ 2/2]" in text
    assert set(watch.seconds) == {"1", "2"}
    if stream.isatty():
        assert "8/8" in text


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo terminals here")
def test_progress_shows_on_a_terminal_without_a_size() -> None:
    """So it is in containers and under `script`: 0 columns and 0 lines, where tqdm shows nothing."""
    ours, theirs = os.openpty()
    try:
        with os.fdopen(theirs, "w") as stream:
            with NodeProgress(WORKFLOW, stream) as watch:
                watch("progress_state", {"nodes": {"2": {"state": "finished", "value": 8, "max": 8}}})
            assert b"Sample it" in os.read(ours, 65536)
    finally:
        os.close(ours)
