"""The report under HLWQ Load Checkpoint, before anything runs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Any

import pytest

from .canvas import UNSCROLLED, Canvas
from .tiny_workflow import TINY

pytestmark = pytest.mark.browser
LOADER = "HLWQLoadCheckpoint"
# The panel's box within the node's, both in the page's pixels.
INSIDE = """(zoom) => {
  const box = document.querySelector(".hlwq-panel").getBoundingClientRect();
  const [x, y, width, height] = app.graph.nodes[0].getBounding();
  const [left, top] = app.canvas.ds.convertOffsetToCanvas([x, y]);
  const page = app.canvas.canvas.getBoundingClientRect();
  return box.width > 100 * zoom && box.left >= page.left + left - 1 && box.top >= page.top + top - 1
    && box.right <= page.left + left + width * zoom + 1 && box.bottom <= page.top + top + height * zoom + 1;
}"""
RENDERINGS = pytest.mark.parametrize("vue", [False, True], ids=["classic", "vue"])


@RENDERINGS
def test_report(open_canvas: Callable[..., Canvas], vue: bool, holes: str, picture: Callable[..., None]) -> None:
    """A whole checkpoint; then one with holes: what is missing, a picture of it, and the ways out."""
    canvas = open_canvas(Comfy__VueNodes__Enabled=vue)
    canvas.add(LOADER, checkpoint=TINY)
    panel = canvas.page.locator(".hlwq-panel[data-state=complete]")
    panel.wait_for()
    text = panel.inner_text()
    assert "5 bits a weight" in text and "Complete: " in text
    assert "No graphics card: plain PyTorch, slow" in text and "eager" not in text
    panel.locator("summary").click()
    for detail in ("packed and ", "File layout: V1", "Unpacked by: eager", "Fast mode is not available: ", "cuda: "):
        panel.get_by_text(detail).wait_for()
    canvas.wait(UNSCROLLED)
    if vue:
        canvas.page.get_by_role("combobox", name="checkpoint").click()
        canvas.page.get_by_role("option", name=holes).click()
    else:
        canvas.choose(LOADER, "checkpoint", holes)
    panel = canvas.page.locator(".hlwq-panel[data-state=incomplete]")
    panel.wait_for()
    assert "parts are missing" in panel.inner_text()
    panel.locator("summary").click()
    canvas.wait("() => document.querySelector('.hlwq-coverage')?.naturalWidth > 0")
    canvas.look_at(LOADER)  # what lies outside the window is cut off
    canvas.wait(UNSCROLLED)
    assert [button.inner_text() for button in panel.locator("button").all()] == ["Download…", "How to repair", "Verify"]
    if vue:
        picture(canvas, "loader-report", of="[data-node-id]")
    panel.locator("button[data-fix=repair]").click()
    assert "HLWQ Repair" in panel.inner_text()
    assert canvas.failures == []


def test_the_side_panel_leaves_the_report_alone(open_canvas: Callable[..., Canvas]) -> None:
    """Selected with the right-hand panel open, the loader keeps its report's width, and the panel has no empty row for it."""
    canvas = open_canvas(Comfy__RightSidePanel__IsOpen=True)
    canvas.add(LOADER, checkpoint=TINY)
    report = canvas.page.locator(".hlwq-panel[data-state=complete]")
    report.wait_for()
    width = report.evaluate("(element) => element.offsetWidth")
    canvas.select(LOADER)
    canvas.page.get_by_text("Advanced inputs").wait_for()  # the side panel lists the node's widgets
    canvas.wait("(width) => document.querySelector('.hlwq-panel').offsetWidth === width", width)
    assert not canvas.page.get_by_text("hlwq_report").count()
    assert report.is_visible() and canvas.failures == []


def test_no_room_is_held(open_canvas: Callable[..., Canvas]) -> None:
    """Under the report of a whole checkpoint there is nothing, and nothing empty; a bypassed loader's report is dimmed."""
    canvas = open_canvas()
    canvas.add(LOADER, checkpoint=TINY)
    panel = canvas.page.locator(".hlwq-panel[data-state=complete]")
    panel.wait_for()
    canvas.wait(
        "() => { const panel = document.querySelector('.hlwq-panel'); return panel.clientHeight < panel.firstChild.offsetHeight + 60; }"
    )
    assert panel.evaluate("(element) => getComputedStyle(element).opacity") == "1"
    canvas.page.evaluate("() => { app.graph.nodes[0].mode = 4; app.canvas.setDirty(true, true); }")
    canvas.wait("() => Number(getComputedStyle(document.querySelector('.hlwq-panel')).opacity) < 0.5")


@RENDERINGS
def test_what_a_run_took(open_canvas: Callable[..., Canvas], vue: bool) -> None:
    """Seconds and memory stand in the report after a run, each stage on demand."""
    canvas = open_canvas(Comfy__VueNodes__Enabled=vue)
    # What one rendering's run has loaded, the other's would find in ComfyUI's cache.
    canvas.add(LOADER, checkpoint=TINY, backend="eager" if vue else "auto", attention="comfyui")
    canvas.add("PreviewAny")
    canvas.connect(LOADER, "report", "PreviewAny")
    assert canvas.run() is None
    run = canvas.page.locator(".hlwq-run")
    run.get_by_text("Last run: ").wait_for()
    assert re.search(r"Last run: \d+\.\d s; at most \d+\.\d [MG]B \(RAM\)", run.inner_text())
    run.locator("summary").click()
    run.get_by_text(re.compile(r"HLWQ Load Checkpoint: \d+\.\d s, \d+\.\d [MG]B")).wait_for()
    assert "Last run" not in canvas.page.evaluate("() => JSON.stringify(app.graph.serialize())")
    assert canvas.failures == []


@pytest.mark.parametrize("nodes", [2, 30])
def test_stages_of_a_run(canvas: Canvas, nodes: int) -> None:
    """Each stage has its line, be it ever so short; of many the twelve longest, in their order."""
    canvas.add(LOADER, checkpoint=TINY)
    canvas.page.locator(".hlwq-panel[data-state=complete]").wait_for()
    canvas.page.evaluate(
        """async (nodes) => {
          const tell = (name, detail) => app.api.dispatchEvent(new CustomEvent(name, { detail }));
          tell("execution_start", {});
          for (let node = 100; node < 100 + nodes; node++) {
            tell("executing", String(node));
            if (node % 2) await new Promise((done) => setTimeout(done, 60));
          }
          tell("executing", null);
          tell("execution_success", {});
        }""",
        nodes,
    )
    run = canvas.page.locator(".hlwq-run")
    run.get_by_text("Last run: ").wait_for()
    lines = [line.split(":")[0] for line in run.locator("div").all_text_contents()]
    assert lines == sorted(lines, key=int)
    if nodes == 2:
        assert lines == ["100", "101"]
    else:
        assert len(lines) == 12 and all(int(line) % 2 for line in lines)


def test_verify(canvas: Canvas) -> None:
    """The Verify button runs to its end and says so in the node."""
    canvas.add(LOADER, checkpoint=TINY)
    panel = canvas.page.locator(".hlwq-panel[data-state=complete]")
    panel.locator("button[data-fix=verify]").click()
    panel.locator("[data-job=done]").wait_for()
    assert "sound" in panel.locator("[data-job=done]").inner_text()


def test_download_asks_first(canvas: Canvas, holes: str) -> None:
    """Nothing is fetched before the user has said yes, who is told how much it is; a refusal (the tests are offline) is shown with what to do."""
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    requests: list[str] = []
    canvas.page.on("request", lambda request: requests.append(f"{request.method} {request.url}"))
    canvas.add(LOADER, checkpoint=holes)
    panel = canvas.page.locator(".hlwq-panel[data-state=incomplete]")
    dialog = canvas.page.get_by_role("dialog")
    panel.locator("button[data-fix=download]").click()
    dialog.get_by_text("Hugging Face").wait_for()
    assert "22.3 GB" in dialog.inner_text()
    dialog.get_by_role("button", name="Cancel").click()
    dialog.wait_for(state="hidden")
    assert not [request for request in requests if request.startswith("POST") and "/hlwq/" in request]
    panel.locator("button[data-fix=download]").click()
    dialog.get_by_role("button", name="Confirm").click()
    failed = panel.locator("[data-job=failed]")
    failed.wait_for()
    assert "offline mode is on" in failed.inner_text()
    assert "what to do: " in failed.inner_text()


@pytest.mark.parametrize(("vue", "kind"), [(False, "verify"), (True, "download")], ids=["classic", "vue"])
def test_progress_in_the_node(open_canvas: Callable[..., Canvas], vue: bool, kind: str, holes: str) -> None:
    """A bar with what is being done, and Cancel; the server's events as tests/http/test_routes.py sees them."""
    canvas = open_canvas(Comfy__VueNodes__Enabled=vue)
    page = canvas.page
    cancelled: list[Any] = []
    page.route(f"**/hlwq/{kind}", lambda route: route.fulfill(json={"job": "job-7"}))
    page.route("**/hlwq/cancel", lambda route: (cancelled.append(route.request.post_data_json), route.fulfill(json={})))

    def event(**detail: Any) -> None:
        page.evaluate(
            "(detail) => app.api.dispatchEvent(new CustomEvent('hlwq.job', { detail }))",
            {"job": "job-7", "kind": kind, "done": 0, "total": 0} | detail,
        )

    canvas.add(LOADER, checkpoint=holes)
    panel = page.locator(".hlwq-panel[data-state=incomplete]")
    panel.locator(f"button[data-fix={kind}]").click()
    if kind == "download":
        page.get_by_role("dialog").get_by_role("button", name="Confirm").click()
    bar = panel.locator("progress")
    bar.wait_for()
    event(state="running", text="at codes/chunk_0003.safetensors", done=3e9, total=12e9)
    panel.get_by_text("at codes/chunk_0003.safetensors").wait_for()
    assert bar.evaluate("(bar) => bar.value / bar.max") == pytest.approx(0.25)
    canvas.wait(UNSCROLLED)
    event(job="another", state="running", text="not this one", done=1, total=2)
    with page.expect_response("**/hlwq/cancel"):
        panel.get_by_role("button", name="Cancel").click()
    event(state="cancelled", text="Cancelled.")
    panel.locator("[data-job=cancelled]").wait_for()
    assert bar.count() == 0
    assert cancelled == [{"job": "job-7"}]
    assert "not this one" not in panel.inner_text()


@pytest.mark.parametrize("palette", ["dark", "light"])
@RENDERINGS
def test_zoom_and_theme(open_canvas: Callable[..., Canvas], vue: bool, palette: str, holes: str) -> None:
    """The report stays inside its node at any zoom, and its text stands out from its ground."""
    canvas = open_canvas(Comfy__VueNodes__Enabled=vue, Comfy__ColorPalette=palette)
    canvas.add(LOADER, checkpoint=holes)
    canvas.page.locator(".hlwq-panel[data-state=incomplete]").wait_for()
    for zoom in (0.35, 1.0, 2.0):
        canvas.page.evaluate(
            "(zoom) => { app.canvas.ds.scale = zoom; app.canvas.ds.offset = [-300, -300]; app.canvas.setDirty(true, true); }",
            zoom,
        )
        canvas.wait(INSIDE, zoom)
        canvas.wait(UNSCROLLED)
    canvas.look_at(LOADER)
    canvas.page.locator(".hlwq-panel summary").click()
    canvas.wait("() => document.querySelector('.hlwq-coverage')?.naturalWidth > 0")
    canvas.look_at(LOADER)
    texts = canvas.texts(".hlwq-panel")
    assert len(texts) > 7
    assert [(piece["text"], piece["contrast"]) for piece in texts if piece["contrast"] < 4.5] == []


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
