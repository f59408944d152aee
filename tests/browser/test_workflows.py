"""Each shipped workflow, dragged onto the canvas as a user drags it."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import av
import pytest

from .canvas import NOTE, UNSCROLLED, Canvas
from .tiny_workflow import LTX25, NAMES, TINY, WORKFLOWS, tiny

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parents[2]
RENDERINGS = pytest.mark.parametrize("vue", [False, True], ids=["classic", "vue"])
FULL = "LTX-2.3-22B-HLWQ-Q5"
# Pixels of a loader's panel that hold nothing.
ROOM = """() => [...document.querySelectorAll(".hlwq-panel")].map((p) => p.clientHeight - p.firstChild.offsetHeight)"""
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
    assert canvas.failures == []


@RENDERINGS
def test_drop_ltx25(open_canvas: Callable[..., Canvas], media: None, tiny_models: Path, vue: bool) -> None:
    """The same of LTX-2.5's, where ComfyUI knows it; its note is readable too."""
    if not (tiny_models / "ltx25").is_dir():
        pytest.skip("LTX-2.5 needs ComfyUI 0.32.0 or newer")
    canvas = open_canvas(Comfy__VueNodes__Enabled=vue)
    for path in LTX25:
        canvas.drop(tiny(path), path.name)
        canvas.page.locator(".hlwq-panel[data-state=complete]").wait_for()
        canvas.fit_view()
        assert canvas.missing_nodes() == canvas.red_inputs() == canvas.overlaps() == [], path.name
        assert not canvas.page.get_by_test_id("error-overlay").is_visible(), path.name
        canvas.look_at("MarkdownNote")
        canvas.page.locator(NOTE).get_by_text("Which file goes where").wait_for()
        assert [piece["text"] for piece in canvas.texts(NOTE) if piece["hidden"]] == [], path.name
    assert canvas.failures == []


@pytest.mark.parametrize("palette", ["dark", "light"])
@RENDERINGS
def test_notes_are_readable(open_canvas: Callable[..., Canvas], vue: bool, palette: str) -> None:
    """The whole text without scrolling, and it stands out from its ground."""
    canvas = open_canvas(Comfy__VueNodes__Enabled=vue, Comfy__ColorPalette=palette)
    for path in WORKFLOWS:
        canvas.drop(tiny(path), path.name)
        canvas.look_at("MarkdownNote")
        canvas.page.locator(NOTE).get_by_text("Which file goes where").wait_for()
        texts = canvas.texts(NOTE)
        assert [piece["text"] for piece in texts if piece["hidden"]] == [], path.name
        # A link has the colour that ComfyUI gives it, and a line under it.
        pale = [(one["text"], one["contrast"]) for one in texts if one["contrast"] < (3 if one["link"] else 4.5)]
        assert pale == [], path.name


@RENDERINGS
def test_room_for_what_is_missing(open_canvas: Callable[..., Canvas], vue: bool, holes: str) -> None:
    """In the shipped workflows an incomplete checkpoint is told whole, and the node still covers no other."""
    canvas = open_canvas(Comfy__VueNodes__Enabled=vue)
    canvas.drop(tiny(TEXT_TO_VIDEO))
    canvas.choose("HLWQLoadCheckpoint", "checkpoint", holes)
    canvas.page.locator(".hlwq-panel[data-state=incomplete]").wait_for()
    canvas.look_at("HLWQLoadCheckpoint", "HLWQLoadTextEncoder")
    canvas.wait(UNSCROLLED)
    assert canvas.overlaps() == []
    boxes = canvas.page.evaluate(ROOM)
    assert vue or all(empty < 70 for empty in boxes), "no room is held for what is not there"


@RENDERINGS
def test_missing_models_can_be_downloaded(open_canvas: Callable[..., Canvas], vue: bool) -> None:
    """As shipped, on a machine without the models: ComfyUI lists the files that it can fetch, the loader what it can."""
    canvas = open_canvas(Comfy__VueNodes__Enabled=vue)
    canvas.drop_file(TEXT_TO_VIDEO)
    panel = canvas.page.locator(".hlwq-panel[data-state=error]")
    panel.wait_for()
    assert f"The workflow asks for {FULL}. Your folders hold {TINY}" in panel.inner_text()
    assert panel.locator("button[data-fix=download]").is_visible()
    canvas.page.get_by_role("button", name="View details").click()
    missing = canvas.page.get_by_test_id("missing-model-importable-rows")
    for name in (name for name in NAMES if json.dumps(name) in TEXT_TO_VIDEO.read_text("utf-8")):
        missing.get_by_text(name).first.wait_for()
    assert missing.get_by_test_id("missing-model-download").count() == 2
    assert missing.locator(".hlwq-row-button").count() == 1
    framed = canvas.page.evaluate("() => app.graph.nodes.filter((n) => n.has_errors).map((n) => n.title)")
    assert {"Load Checkpoint", "Load Text Encoder", "Distilled LoRA"} <= set(framed)
    everything = canvas.page.get_by_test_id("missing-model-download-all")
    everything.get_by_text("+ 22.3 GB").wait_for()
    everything.click()
    dialog = canvas.page.get_by_role("dialog")
    dialog.get_by_text("caiovicentino1/LTX-2.3-22B-HLWQ-Q5").wait_for()
    dialog.get_by_role("button", name="Cancel").click()
    # What is there is taken instead: ComfyUI's list no longer names the checkpoint.
    panel.locator("button[data-fix=use]").first.click()
    canvas.page.locator(".hlwq-panel[data-state=complete]").wait_for()
    encoder = canvas.page.evaluate("() => app.graph.nodes.findIndex((n) => n.type === 'HLWQLoadTextEncoder')")
    assert encoder >= 0
    canvas.choose("HLWQLoadTextEncoder", "checkpoint", TINY)
    canvas.page.evaluate("() => app.refreshComboInNodes()")
    missing.get_by_text(FULL).first.wait_for(state="detached")


@RENDERINGS
def test_a_refused_run_offers_what_is_there(open_canvas: Callable[..., Canvas], vue: bool) -> None:
    """One dialog says what is asked for and what there is, by the nodes' titles; taking what is there lets it run."""
    canvas = open_canvas(Comfy__VueNodes__Enabled=vue)
    workflow = tiny(TEXT_TO_VIDEO)
    for node in workflow["nodes"]:
        if node["type"] in ("HLWQLoadCheckpoint", "HLWQLoadTextEncoder"):
            node["widgets_values"] = [FULL if value == TINY else value for value in node["widgets_values"]]
    canvas.drop(workflow)
    canvas.page.locator(".hlwq-panel[data-state=error]").wait_for()
    canvas.press_run()
    dialog = canvas.page.locator(".hlwq-dialog")
    dialog.wait_for()
    text = dialog.inner_text()
    assert f"The workflow asks for {FULL}. Your folders hold {TINY}" in text
    assert "Load Checkpoint, Load Text Encoder" in text and "HLWQLoad" not in text
    assert text.count("The workflow asks for") == 1
    dialog.get_by_role("button", name="Download…").wait_for()
    dialog.get_by_role("button", name=f"Use {TINY}").click()
    dialog.get_by_text(f"{TINY} is used now.").wait_for()
    canvas.page.locator(".hlwq-panel[data-state=complete]").wait_for()
    values = canvas.page.evaluate(
        "() => app.graph.nodes.flatMap((n) => (n.widgets ?? []).filter((w) => w.name === 'checkpoint').map((w) => w.value))"
    )
    assert values == [TINY, TINY]
    canvas.page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    assert canvas.failures == []


APP_NAMES = (
    "Start image",
    "Video",
    "Audio",
    "Prompt",
    "Width",
    "Height",
    "Length",
    "Last frames",
    "Frame rate",
    "Seed",
)


@pytest.mark.parametrize("size", [(1600, 900), (390, 844)], ids=["desktop", "phone"])
def test_app_mode(open_canvas: Callable[..., Canvas], media: None, size: tuple[int, int]) -> None:
    """ComfyUI's app mode asks for what a person sets, each by a name of its own, and shows the video."""
    canvas = open_canvas()
    canvas.page.set_viewport_size({"width": size[0], "height": size[1]})
    for path in WORKFLOWS:
        canvas.drop(tiny(path), path.name)
        titles = [node.get("title") for node in tiny(path)["nodes"]]
        wanted = [name for name in APP_NAMES if name in titles]
        canvas.wait("(name) => app.extensionManager.workflow.activeWorkflow?.filename === name", path.stem)
        canvas.page.evaluate("() => app.extensionManager.command.execute('Comfy.ToggleLinear')")
        if size[0] < 800:
            canvas.page.get_by_text("Edit & Run").click()
        widgets = canvas.page.get_by_test_id("linear-widgets")
        widgets.get_by_text("Prompt", exact=True).first.wait_for()
        shown = widgets.inner_text()
        assert [name for name in wanted if name not in shown] == [], path.name
        assert not re.search(r"^(value|text|noise_seed|image)$", shown, re.M), path.name
        inside = widgets.evaluate("(element) => element.scrollWidth <= element.clientWidth + 1")
        assert inside, f"{path.name}: wider than its place"
        canvas.page.evaluate("() => app.extensionManager.command.execute('Comfy.ToggleLinear')")
    assert canvas.failures == []


@pytest.mark.timeout(180)
@RENDERINGS
def test_text_to_video(
    open_canvas: Callable[..., Canvas],
    vue: bool,
    picture: Callable[..., None],
    frame_strip: Callable[..., None],
    film: Callable[..., AbstractContextManager[Callable[[float], None]]],
) -> None:
    """Press Run; the saved video plays in the node, with its sound."""
    canvas = open_canvas(Comfy__VueNodes__Enabled=vue, Comfy__Execution__PreviewMethod="latent2rgb")
    canvas.drop(tiny(TEXT_TO_VIDEO))
    canvas.page.locator(".hlwq-panel[data-state=complete]").wait_for()
    canvas.fit_view()
    with film(canvas, "clip") if vue else contextlib.nullcontext(lambda seconds: None) as hold:
        hold(1)
        canvas.look_at("HLWQLoadCheckpoint")
        hold(1.5)
        canvas.look_at("SamplerCustomAdvanced", "HLWQDecodeSave")
        hold(1)
        assert canvas.run() is None
        played = canvas.video()
        canvas.page.evaluate("() => document.querySelectorAll('video').forEach((v) => { v.loop = true; v.play(); })")
        hold(2)
    assert (played["width"], played["height"]) == (128, 64)
    assert played["duration"] == pytest.approx(9 / 24, abs=1 / 24)
    assert played["controls"]
    assert not played["muted"]
    if vue:
        frame_strip(canvas.saved(), "frames")
        picture(canvas, "result")
    assert canvas.failures == []


@pytest.mark.timeout(180)
@RENDERINGS
def test_previews_while_sampling(open_canvas: Callable[..., Canvas], vue: bool) -> None:
    """With ComfyUI's previews switched on, the sampler shows the picture as it comes."""
    canvas = open_canvas(Comfy__VueNodes__Enabled=vue, Comfy__Execution__PreviewMethod="latent2rgb")
    workflow = tiny(TEXT_TO_VIDEO)
    for node in workflow["nodes"]:
        if node["type"] == "RandomNoise":
            node["widgets_values"] = [1000 + vue, "fixed"]  # not what another test has left in ComfyUI's cache
        elif node["type"] == "ManualSigmas":
            node["widgets_values"] = ["1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.0"]
    canvas.drop(workflow)
    canvas.page.locator(".hlwq-panel[data-state=complete]").wait_for()
    canvas.look_at("SamplerCustomAdvanced")
    canvas.page.evaluate(
        """() => {
          const seen = (window.hlwqSeen = { previews: 0, shown: 0 });
          const sampler = app.graph.nodes.find((n) => n.type === "SamplerCustomAdvanced");
          app.api.addEventListener("b_preview_with_metadata", () => seen.previews++);
          setInterval(() => {
            const image = document.querySelector(`[data-node-id="${sampler.id}"] img[src^="blob:"]`) ?? sampler.imgs?.[0];
            if (image?.naturalWidth) seen.shown++;
          }, 20);
        }"""
    )
    assert canvas.run() is None
    seen = canvas.page.evaluate("() => hlwqSeen")
    assert seen["previews"] >= 3 and seen["shown"] > 0, seen
    assert canvas.failures == []


def test_templates(canvas: Canvas, picture: Callable[..., None]) -> None:
    """The template browser lists every workflow of the pack with a title, a sentence and its thumbnail, the simplest first."""
    page = canvas.page
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text(re.compile("^ComfyUI-HLWQ$")).first.click()
    first = page.locator("[data-testid^=template-workflow-hlwq]").first
    first.wait_for()
    assert first.get_attribute("data-testid") == f"template-workflow-{TEXT_TO_VIDEO.stem}"
    words = json.loads((ROOT / "locales" / "en" / "main.json").read_text("utf-8"))["hlwq"]
    for path in WORKFLOWS:
        card = page.get_by_test_id(f"template-workflow-{path.stem}")
        card.wait_for()
        card.scroll_into_view_if_needed()
        canvas.wait(
            "(id) => document.querySelector(`[data-testid='${id}'] img`)?.naturalWidth > 0",
            f"template-workflow-{path.stem}",
        )
        card.get_by_text(words[f"template.{path.stem}"], exact=True).wait_for()
        # Newer frontends have the sentence behind a click on the card.
        assert card.locator("p").count() == 0 or words[f"template.{path.stem}.about"] in card.inner_text()
        assert path.stem not in card.inner_text()
    first.scroll_into_view_if_needed()
    picture(canvas, "templates")
    first.click()
    detail = page.get_by_test_id("template-workflow-detail")
    canvas.wait(
        "() => document.querySelector('[data-testid=template-workflow-detail]')"
        " || app.graph.nodes.some((node) => node.type === 'HLWQLoadCheckpoint')"
    )
    if detail.count():
        detail.get_by_role("heading", name=words[f"template.{TEXT_TO_VIDEO.stem}"], exact=True).wait_for()
        detail.get_by_text(words[f"template.{TEXT_TO_VIDEO.stem}.about"]).wait_for()
        detail.get_by_role("button", name=re.compile("^Open")).first.click()
    canvas.wait("() => app.graph.nodes.some((node) => node.type === 'HLWQLoadCheckpoint')")
    assert canvas.missing_nodes() == []


BLUEPRINTS = sorted((Path(__file__).resolve().parents[2] / "subgraphs").glob("*.json"))


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("path", "vue"),
    [(BLUEPRINTS[0], False), (BLUEPRINTS[-1], True)],
    ids=["image to video, classic", "text to video, vue"],
)
def test_blueprint(open_canvas: Callable[..., Canvas], media: None, path: Path, vue: bool) -> None:
    """A search finds the blueprint; it is one node whose inside is whole; it runs as it is and saves picture and sound.

    The frontend gives a subgraph node no widgets of its own: the video is in the Assets, and in the save node inside.
    """
    canvas = open_canvas(Comfy__VueNodes__Enabled=vue)
    canvas.search_and_add(path.stem)
    canvas.wait("(title) => app.graph.nodes.some((n) => n.isSubgraphNode?.() && n.title === title)", path.stem)
    assert canvas.missing_nodes() == []
    values = {"checkpoint": TINY, "text_encoder": "gemma_3_tiny.safetensors", "width": 128, "height": 64, "length": 9}
    node_type = canvas.page.evaluate("() => app.graph.nodes[0].type")
    for name, value in (values | {"distilled_LoRA": "ltx-2.3-tiny-distilled-lora.safetensors"}).items():
        canvas.choose(node_type, name, value)
    if "image" in path.stem:
        canvas.add("LoadImage", image="example.png")
        canvas.connect("LoadImage", "IMAGE", node_type)
    canvas.look_at(node_type)
    assert canvas.run() is None
    with av.open(io.BytesIO(canvas.saved())) as file:
        assert (file.streams.video[0].width, file.streams.video[0].height) == (128, 64)
        assert file.streams.video[0].frames == 9
        assert len(file.streams.audio) == 1
    assert canvas.failures == []


def test_there_is_a_blueprint_for_text_and_for_image() -> None:
    assert [path.stem for path in BLUEPRINTS] == ["HLWQ LTX-2.3 image to video", "HLWQ LTX-2.3 text to video"]
