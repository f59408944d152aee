"""The report under HLWQ Load Checkpoint, before anything runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .canvas import Canvas

TINY = "LTX-2.3-tiny-HLWQ-Q5"
LOADER = "HLWQLoadCheckpoint"
RENDERINGS = pytest.mark.parametrize("vue", [False, True], ids=["classic", "vue"])


@pytest.fixture(scope="module")
def holes(server: Any, tiny: Path) -> Iterator[str]:
    """A checkpoint beside the tiny one that lacks its last chunk of codes; its name."""
    name = "LTX-2.3-tiny-with-holes"
    source = tiny / "models" / "hlwq" / TINY
    target = Path(server.base) / "models" / "hlwq" / name
    shutil.copytree(source, target, dirs_exist_ok=True)
    sorted(target.rglob("chunk_*_codes.safetensors"))[-1].unlink()
    yield name
    shutil.rmtree(target)


@RENDERINGS
def test_complete(open_canvas: Callable[..., Canvas], vue: bool) -> None:
    canvas = open_canvas(Comfy__VueNodes__Enabled=vue)
    canvas.add(LOADER, checkpoint=TINY)
    panel = canvas.page.locator(".hlwq-panel[data-state=complete]")
    panel.wait_for()
    text = panel.inner_text()
    assert "HLWQ-5 · V1" in text
    assert "Complete: " in text
    assert "Weights in memory: " in text
    assert "Backend: " in text
    assert "Fast mode: " in text
    assert canvas.failures == []


@RENDERINGS
def test_incomplete(open_canvas: Callable[..., Canvas], vue: bool, holes: str, picture: Callable[..., None]) -> None:
    """What is missing, a picture of it, and the ways out."""
    canvas = open_canvas(Comfy__VueNodes__Enabled=vue)
    canvas.add(LOADER, checkpoint=TINY)
    canvas.page.locator(".hlwq-panel[data-state=complete]").wait_for()
    canvas.choose(LOADER, "checkpoint", holes)
    panel = canvas.page.locator(".hlwq-panel[data-state=incomplete]")
    panel.wait_for()
    assert "are missing" in panel.inner_text()
    canvas.wait("() => document.querySelector('.hlwq-coverage')?.naturalWidth > 0")
    assert panel.locator("button[data-fix=download]").is_visible()
    panel.locator("button[data-fix=repair]").click()
    assert "HLWQ Repair" in panel.inner_text()
    if not vue:
        picture(canvas, "loader-report", of=".hlwq-panel")
    assert canvas.failures == []


def test_verify(canvas: Canvas) -> None:
    """The Verify button runs to its end and says so in the node."""
    canvas.add(LOADER, checkpoint=TINY)
    panel = canvas.page.locator(".hlwq-panel[data-state=complete]")
    panel.locator("button[data-fix=verify]").click()
    panel.locator("[data-job=done]").wait_for()
    assert "sound" in panel.locator("[data-job=done]").inner_text()


def test_download_asks_first(canvas: Canvas, holes: str) -> None:
    """Nothing is fetched before the user has said yes."""
    requests: list[str] = []
    canvas.page.on("request", lambda request: requests.append(f"{request.method} {request.url}"))
    canvas.add(LOADER, checkpoint=holes)
    canvas.page.locator(".hlwq-panel[data-state=incomplete] button[data-fix=download]").click()
    dialog = canvas.page.get_by_role("dialog")
    dialog.get_by_text("Hugging Face").wait_for()
    dialog.get_by_role("button", name="Cancel").click()
    dialog.wait_for(state="hidden")
    assert not [request for request in requests if request.startswith("POST") and "/hlwq/" in request]


@pytest.mark.parametrize("zoom", [0.5, 2.0])
@pytest.mark.parametrize("palette", ["dark", "light"])
def test_zoom_and_theme(open_canvas: Callable[..., Canvas], zoom: float, palette: str) -> None:
    """The report stays inside its node, and its text differs from its ground."""
    canvas = open_canvas(Comfy__ColorPalette=palette)
    canvas.add(LOADER, checkpoint=TINY)
    canvas.page.evaluate("(zoom) => { app.canvas.ds.scale = zoom; app.canvas.setDirty(true, true); }", zoom)
    canvas.page.locator(".hlwq-panel[data-state=complete]").wait_for()
    canvas.wait(
        """(zoom) => {
          const box = document.querySelector(".hlwq-panel").getBoundingClientRect();
          const [x, y, width, height] = app.graph.nodes[0].getBounding();
          const [left, top] = app.canvas.ds.convertOffsetToCanvas([x, y]);
          const page = app.canvas.canvas.getBoundingClientRect();
          return box.width > 100 * zoom && box.left >= page.left + left - 1 && box.top >= page.top + top - 1
            && box.right <= page.left + left + width * zoom + 1 && box.bottom <= page.top + top + height * zoom + 1;
        }""",
        zoom,
    )
    colors = canvas.page.evaluate(
        "() => { const style = getComputedStyle(document.querySelector('.hlwq-panel'));"
        " return [style.color, style.backgroundColor]; }"
    )
    assert colors[0] != colors[1]


def test_other_nodes_are_left_alone(canvas: Canvas) -> None:
    """A node of core with an input of the same name gets no report, and the report is not saved with the workflow."""
    canvas.add("CheckpointLoaderSimple")
    canvas.add(LOADER, checkpoint=TINY)
    canvas.page.locator(".hlwq-panel[data-state=complete]").wait_for()
    assert canvas.page.locator(".hlwq-panel").count() == 1
    saved = canvas.page.evaluate("() => JSON.stringify(app.graph.serialize())")
    loader = next(node for node in json.loads(saved)["nodes"] if node["type"] == LOADER)
    assert loader["widgets_values"][0] == TINY
    assert "hlwq_report" not in saved
    prompt = canvas.page.evaluate("async () => (await app.graphToPrompt()).output")
    assert all("hlwq_report" not in node["inputs"] for node in prompt.values())
