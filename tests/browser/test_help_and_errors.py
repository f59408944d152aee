"""Help pages, translated names, and errors as ComfyUI shows them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .canvas import Canvas
from .tiny_workflow import TINY

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
    canvas.clear()
    canvas.add(NODES[0])
    canvas.select(NODES[0])
    canvas.page.get_by_test_id("info-button").click()
    page = (ROOT / "web" / "docs" / NODES[0] / f"{language}.md").read_text("utf-8").splitlines()
    for heading in [line[3:] for line in page if line.startswith("## ")]:
        canvas.page.get_by_role("heading", name=heading, exact=True).wait_for()


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
        panel = canvas.page.locator(".hlwq-panel[data-state=error]")
        assert error.splitlines()[-1].strip() in panel.inner_text()
        panel.locator("button[data-fix=download]").wait_for()
        if errors_tab:
            picture(canvas, "error")
        canvas.page.keyboard.press("Escape")
        dialog.wait_for(state="detached")


# One error of every node that fails while it runs, besides the loader's above: nodes with their widgets, and links.
Graph = tuple[list[tuple[str, dict[str, Any]]], list[tuple[str, str, str, int]]]
WRONG = "not-right.safetensors"
VIDEO_LATENT = ("EmptyLTXVLatentVideo", {"width": 64, "height": 64, "length": 9})
FAILING: dict[str, Graph] = {
    "HLWQLoadTextEncoder": (
        [
            ("HLWQLoadTextEncoder", {"text_encoder": WRONG, "checkpoint": TINY}),
            ("CLIPTextEncode", {}),
            ("PreviewAny", {}),
        ],
        [("HLWQLoadTextEncoder", "CLIP", "CLIPTextEncode", 0), ("CLIPTextEncode", "CONDITIONING", "PreviewAny", 0)],
    ),
    "HLWQLoadDiffusionModel": (
        [("HLWQLoadDiffusionModel", {"checkpoint": "HOLES"}), ("PreviewAny", {})],
        [("HLWQLoadDiffusionModel", "report", "PreviewAny", 0)],
    ),
    "HLWQLoadUpscaler": (
        [("HLWQLoadUpscaler", {"upscaler": WRONG}), ("PreviewAny", {})],
        [("HLWQLoadUpscaler", "LATENT_UPSCALE_MODEL", "PreviewAny", 0)],
    ),
    "HLWQUpscaleLatent": (
        [("HLWQLoadCheckpoint", {"checkpoint": TINY}), VIDEO_LATENT, ("HLWQUpscaleLatent", {}), ("PreviewAny", {})],
        [
            ("EmptyLTXVLatentVideo", "LATENT", "HLWQUpscaleLatent", 0),
            ("HLWQLoadCheckpoint", "VAE", "HLWQUpscaleLatent", 1),
            ("HLWQUpscaleLatent", "frame_rate", "PreviewAny", 0),
        ],
    ),
    "HLWQSaveAudioVideo": (
        [("EmptyImage", {"width": 64, "height": 64}), ("HLWQSaveAudioVideo", {"filename_prefix": "../x"})],
        [("EmptyImage", "IMAGE", "HLWQSaveAudioVideo", 0)],
    ),
    "HLWQDecodeSave": (
        [
            ("HLWQLoadCheckpoint", {"checkpoint": TINY}),
            VIDEO_LATENT,
            ("HLWQDecodeSave", {"filename_prefix": "../x"}),
        ],
        [
            ("EmptyLTXVLatentVideo", "LATENT", "HLWQDecodeSave", 0),
            ("HLWQLoadCheckpoint", "VAE", "HLWQDecodeSave", 1),
        ],
    ),
    "HLWQQuantize": ([("HLWQQuantize", {"source": f"checkpoints/{WRONG}", "name": TINY})], []),
    "HLWQRepair": ([("HLWQRepair", {"checkpoint": "HOLES", "original": f"checkpoints/{WRONG}"})], []),
    "HLWQDownload": ([("HLWQDownload", {})], []),
}


@pytest.fixture(scope="package")
def wrong(server: Any) -> Iterator[None]:
    """A LoRA in every folder that it does not belong into."""
    models = Path(server.base) / "models"
    placed = []
    for folder in ("text_encoders", "latent_upscale_models", "checkpoints"):
        (models / folder).mkdir(exist_ok=True)
        placed.append(models / folder / WRONG)
        shutil.copyfile(models / "loras" / "ltx-2.3-tiny-distilled-lora.safetensors", placed[-1])
    yield
    for path in placed:
        path.unlink()


@pytest.mark.timeout(180)
def test_errors_of_every_node(canvas: Canvas, wrong: None, holes: str) -> None:
    """Each in ComfyUI's error dialog, every line of it, the next step among them."""
    for node_type, (nodes, links) in FAILING.items():
        canvas.clear()
        for name, widgets in nodes:
            canvas.add(name, **{key: holes if value == "HOLES" else value for key, value in widgets.items()})
        for link in links:
            canvas.connect(*link)
        error = canvas.run()
        assert error is not None and "what to do: " in error, f"{node_type}: {error}"
        dialog = canvas.page.get_by_test_id("error-dialog")
        dialog.wait_for()
        shown = dialog.inner_text()
        assert [line for line in error.splitlines() if line.strip() not in shown] == [], node_type
        canvas.page.keyboard.press("Escape")
        dialog.wait_for(state="detached")


# Values that a node refuses. Inspect and Verify fail in no other way: what they find is their report.
ASKED = "asks for the {0} gone; your folders hold "
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("HLWQInspect", {"checkpoint": "gone"}, ASKED.format("checkpoint")),
    ("HLWQVerify", {"checkpoint": "gone"}, ASKED.format("checkpoint")),
    ("HLWQQuantize", {"source": "gone"}, ASKED.format("model")),
    ("HLWQQuantize", {"source": f"checkpoints/{WRONG}", "name": "../x"}, "no name for a checkpoint"),
]


# Their refusals are tried in process: tests/comfy/test_calibrate.py, test_several_gpus.py.
ELSEWHERE = {"HLWQLoadCheckpoint", "HLWQCalibrate", "HLWQSeveralGPUs"}


def test_every_node_is_tried() -> None:
    assert {*FAILING, *(node_type for node_type, _, _ in REFUSED), *ELSEWHERE} == set(NODES)


@pytest.mark.parametrize("errors_tab", [True, False], ids=["errors tab", "no errors tab"])
def test_refusals_before_anything_runs(open_canvas: Callable[..., Canvas], errors_tab: bool, wrong: None) -> None:
    """A value that a node refuses: the reason is in the dialog too, once, and the next step with it."""
    canvas = open_canvas(Comfy__RightSidePanel__ShowErrorsTab=errors_tab)
    for node_type, widgets, reason in REFUSED:
        canvas.clear()
        canvas.add(node_type, **widgets)
        canvas.press_run()
        dialog = canvas.page.locator(".hlwq-dialog") if errors_tab else canvas.page.get_by_test_id("error-dialog")
        dialog.wait_for()
        if errors_tab and dialog.locator("summary").count():
            dialog.locator("summary").click()
        shown = dialog.inner_text()
        assert reason in shown and "what to do: " in shown
        if errors_tab:
            assert shown.count(reason) == 1
            assert node_type not in shown, "a node is called by its title"
        canvas.page.keyboard.press("Escape")
        dialog.wait_for(state="detached")


def test_errors_of_other_nodes_are_left_to_comfyui(canvas: Canvas) -> None:
    """A refused value of another pack's node opens no dialog of ours."""
    canvas.add("LoadImage", image="gone.png")
    canvas.add("PreviewImage")
    canvas.connect("LoadImage", "IMAGE", "PreviewImage")
    canvas.press_run()
    canvas.page.get_by_role("button", name="View details").wait_for()
    assert canvas.page.get_by_test_id("error-dialog").count() == 0
    assert canvas.page.locator(".hlwq-dialog").count() == 0
