"""Each shipped workflow, dragged onto the canvas as a user drags it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from .canvas import Canvas
from .tiny_workflow import TINY, WORKFLOWS, tiny

pytestmark = pytest.mark.browser
RENDERINGS = pytest.mark.parametrize("vue", [False, True], ids=["classic", "vue"])
TEXT_TO_VIDEO = next(path for path in WORKFLOWS if path.stem.endswith("text_to_video"))


@RENDERINGS
def test_drop(open_canvas: Callable[..., Canvas], media: None, vue: bool) -> None:
    """No missing node, no red input, readable notes, nothing on top of anything else."""
    canvas = open_canvas(Comfy__VueNodes__Enabled=vue)
    for path in WORKFLOWS:
        canvas.drop(tiny(path), path.name)
        canvas.page.locator(".hlwq-panel[data-state=complete]").wait_for()
        canvas.fit_view()
        assert canvas.missing_nodes() == [], path.name
        assert canvas.red_inputs() == [], path.name
        assert canvas.overlaps() == [], path.name
        assert not canvas.page.get_by_test_id("error-overlay").is_visible(), path.name
        for note in canvas.notes():
            assert note["text"].strip(), path.name
            assert note["hidden"] <= 0, f"{path.name}: {note['hidden']} px of the note must be scrolled"
    assert canvas.failures == []


@pytest.mark.timeout(180)
@RENDERINGS
def test_text_to_video(open_canvas: Callable[..., Canvas], vue: bool, picture: Callable[..., None]) -> None:
    """Press Run; the saved video plays in the node, with its sound."""
    canvas = open_canvas(Comfy__VueNodes__Enabled=vue)
    canvas.drop(tiny(TEXT_TO_VIDEO))
    canvas.page.locator(".hlwq-panel[data-state=complete]").wait_for()
    canvas.fit_view()
    assert canvas.run() is None
    played = canvas.video()
    assert (played["width"], played["height"]) == (128, 64)
    assert played["duration"] == pytest.approx(9 / 24, abs=1 / 24)
    assert played["controls"]
    assert not played["muted"]
    if vue:
        picture(canvas, "workflow")
        canvas.look_at("VAEDecodeTiled", "HLWQSaveAudioVideo")
        picture(canvas, "result")
    assert canvas.failures == []


def test_templates(canvas: Canvas, picture: Callable[..., None]) -> None:
    """The template browser lists every workflow of the pack, with its thumbnail, and opens it."""
    page = canvas.page
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text(re.compile("^ComfyUI-HLWQ$")).first.click()
    for path in WORKFLOWS:
        card = page.get_by_test_id(f"template-workflow-{path.stem}")
        card.wait_for()
        card.scroll_into_view_if_needed()
        canvas.wait(
            "(id) => document.querySelector(`[data-testid='${id}'] img`)?.naturalWidth > 0",
            f"template-workflow-{path.stem}",
        )
    picture(canvas, "templates")
    page.get_by_test_id(f"template-workflow-{TEXT_TO_VIDEO.stem}").click()
    canvas.wait("() => app.graph.nodes.some((node) => node.type === 'HLWQLoadCheckpoint')")
    assert canvas.missing_nodes() == []


BLUEPRINTS = sorted((Path(__file__).resolve().parents[2] / "subgraphs").glob("*.json"))


@pytest.mark.timeout(180)
def test_blueprints(canvas: Canvas) -> None:
    """A search for each blueprint finds it; it gives one node whose inside is whole; text to video runs as it is."""
    assert len(BLUEPRINTS) >= 2
    for path in BLUEPRINTS:
        canvas.clear()
        canvas.search_and_add(path.stem)
        canvas.wait("(title) => app.graph.nodes.some((n) => n.isSubgraphNode?.() && n.title === title)", path.stem)
        assert canvas.missing_nodes() == []
    assert path.stem == "HLWQ LTX-2.3 text to video"
    values = {"checkpoint": TINY, "text_encoder": "gemma_3_tiny.safetensors", "width": 128, "height": 64, "length": 9}
    node_type = canvas.page.evaluate("() => app.graph.nodes[0].type")
    for name, value in (values | {"distilled_LoRA": "ltx-2.3-tiny-distilled-lora.safetensors"}).items():
        canvas.choose(node_type, name, value)
    assert canvas.run() is None
    assert canvas.failures == []
