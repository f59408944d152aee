"""Help pages, translated names, and errors as ComfyUI shows them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from .canvas import Canvas

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parents[2]
NODES = sorted(path.stem for path in (ROOT / "web" / "docs").glob("*.md"))


def test_help_pages(canvas: Canvas) -> None:
    """The info button of every node opens its page."""
    for node_type in NODES:
        canvas.clear()
        canvas.add(node_type)
        canvas.select(node_type)
        canvas.page.get_by_test_id("info-button").click()
        title = (ROOT / "web" / "docs" / f"{node_type}.md").read_text("utf-8").splitlines()[0].removeprefix("# ")
        canvas.page.get_by_role("heading", name=title, exact=True, level=1).wait_for()
        canvas.page.get_by_role("heading", name="What can go wrong").wait_for()


@pytest.mark.parametrize("language", ["zh", "ja", "pt-BR"])
def test_translated_names(open_canvas: Callable[..., Canvas], language: str) -> None:
    names = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))
    canvas = open_canvas(Comfy__Locale=language)
    for node_type in NODES:
        canvas.add(node_type)
    titles = canvas.page.evaluate("() => Object.fromEntries(app.graph.nodes.map((n) => [n.type, n.title]))")
    assert titles == {node_type: names[node_type]["display_name"] for node_type in NODES}


@pytest.mark.parametrize("errors_tab", [True, False], ids=["errors tab", "no errors tab"])
def test_errors_are_shown_whole(
    open_canvas: Callable[..., Canvas], errors_tab: bool, holes: str, truncated: str, picture: Callable[..., None]
) -> None:
    """What, where, expected, found, and what to do: in ComfyUI's error dialog, once, and in the loader."""
    canvas = open_canvas(Comfy__RightSidePanel__ShowErrorsTab=errors_tab)
    for checkpoint, what in ((holes, "tensors"), (truncated, "chunk_")):
        canvas.clear()
        canvas.add("HLWQLoadCheckpoint", checkpoint=checkpoint)
        canvas.add("PreviewAny")
        canvas.connect("HLWQLoadCheckpoint", "report", "PreviewAny")
        error = canvas.run()
        assert error is not None and what in error
        assert "what to do: " in error
        dialog = canvas.page.get_by_test_id("error-dialog")
        dialog.wait_for()
        for line in error.splitlines():
            assert line.strip() in dialog.inner_text()
        assert error.splitlines()[-1].strip() in canvas.page.locator(".hlwq-panel[data-state=error]").inner_text()
        picture(canvas, "error")
        canvas.page.keyboard.press("Escape")
        dialog.wait_for(state="detached")
