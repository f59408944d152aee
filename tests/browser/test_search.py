"""The node search finds the loaders first, whatever one calls them."""

from __future__ import annotations

import pytest

from .canvas import Canvas

pytestmark = pytest.mark.browser
LOADER = "HLWQ Load Checkpoint"


def _found(canvas: Canvas, words: str) -> list[str]:
    """The titles that the search lists, in its order."""
    page = canvas.page
    page.evaluate("() => { app.extensionManager.command.execute('Workspace.SearchBox.Toggle'); }")
    search = page.get_by_role("combobox", name="Add a node...")
    search.fill(words)
    page.get_by_role("option", name=LOADER).first.wait_for()
    found = [option.inner_text().splitlines()[0] for option in page.get_by_role("option").all()]
    page.keyboard.press("Escape")
    search.wait_for(state="detached")
    return found


def test_search(canvas: Canvas) -> None:
    for words in ("hlwq", "ltx", "q5", "5 bit", "quantized", "low vram", "polarquant"):
        assert _found(canvas, words)[0] == LOADER, words
    # Core has a node of exactly this name, which stays the first; ours is the first of the pack, and in sight.
    found = _found(canvas, "load checkpoint")
    assert found[0] == "Load Checkpoint" and found.index(LOADER) < 5
    assert next(title for title in found if title.startswith("HLWQ")) == LOADER
    found = _found(canvas, "hlwq")
    assert found[:2] == [LOADER, "HLWQ Load Diffusion Model"] and found.index("HLWQ Verify") > found.index(
        "HLWQ Decode + Save"
    )
    assert canvas.failures == []
