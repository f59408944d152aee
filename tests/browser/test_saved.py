"""What a node has saved is shown in it, with a line, and again after the page is loaded anew."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .canvas import Canvas

pytestmark = pytest.mark.browser
LINE = ".hlwq-findings"
SHOWN = "() => [...document.querySelectorAll('video')].some((video) => video.readyState >= 2)"


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "vue"])
def test_preview_and_line_come_back(open_canvas: Callable[..., Canvas], vue: bool) -> None:
    canvas = open_canvas(Comfy__VueNodes__Enabled=vue)
    canvas.add("EmptyImage", width=64, height=64, batch_size=9)
    canvas.add("HLWQSaveAudioVideo", filename_prefix="saved/again")
    canvas.connect("EmptyImage", "IMAGE", "HLWQSaveAudioVideo", 0)
    assert canvas.run() is None
    line = canvas.page.locator(LINE)
    line.get_by_text("9 frames at 24 a second").wait_for()
    canvas.wait(SHOWN)
    workflow = canvas.page.evaluate("() => app.graph.serialize()")
    assert "9 frames" not in str(workflow), "the workflow does not carry what this browser has seen"
    canvas.page.reload()
    canvas.wait("window.app?.vueAppReady && window.app.extensionManager?.spinner === false")
    canvas.drop(workflow)
    line.get_by_text("9 frames at 24 a second").wait_for()
    canvas.wait(SHOWN)
    assert canvas.failures == []
