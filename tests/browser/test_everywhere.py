"""What the pack draws on the canvas, in every way in which a person may look at it: rendering, theme, zoom, width, language.

In the suite every pair of these meets once (of the languages each is seen once); all of them together run by `pytest -m everywhere tests/browser`. On another
frontend: `python3 scripts/test.py --with comfyui-frontend-package==1.58.1 -m everywhere tests/browser`. $HLWQ_LOOKS names a folder for
screenshots of all of them, to be looked at.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from .canvas import Canvas
from .tiny_workflow import TINY

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parents[2]
NOT_YET = {"de"}  # ComfyUI itself has no German: the pack's waits for it
LANGUAGES = sorted(path.name for path in (ROOT / "locales").iterdir() if path.name not in NOT_YET)
LOADER = "HLWQLoadCheckpoint"
PHONE, DESKTOP = (390, 844), (1600, 900)

Look = tuple[bool, str, float, tuple[int, int], str]
DIMENSIONS = ((False, True), ("dark", "light"), (0.35, 1.0, 2.0), (DESKTOP, PHONE), tuple(LANGUAGES))


def _pairwise() -> list[Look]:
    """Few looks in which any two values of two dimensions meet, and each language once: each time the one that adds the most."""

    def pairs(look: Look) -> set[tuple[object, ...]]:
        return {(a, look[a], b, look[b]) for a, b in itertools.combinations(range(len(look) - 1), 2)} | {look[-1:]}

    every = list(itertools.product(*DIMENSIONS))
    wanted = set().union(*map(pairs, every))
    chosen = []
    while wanted:
        best = max(every, key=lambda look: len(pairs(look) & wanted))
        chosen.append(best)
        wanted -= pairs(best)
    return chosen


def _name(look: Look) -> str:
    vue, palette, zoom, size, language = look
    return f"{'vue' if vue else 'classic'}-{palette}-{zoom:.0%}-{size[0]}-{language}"


def _words(language: str) -> dict[str, str]:
    return json.loads((ROOT / "locales" / language / "main.json").read_text("utf-8"))["hlwq"]


def _keep(canvas: Canvas, look: Look, what: str) -> None:
    if folder := os.environ.get("HLWQ_LOOKS"):
        canvas.page.screenshot(path=Path(folder, f"{_name(look)}-{what}.jpg"), type="jpeg", quality=70)


def _check(canvas: Canvas, look: Look, holes: str) -> None:
    """Report, refusal and search: in the language, within their places, and readable."""
    _, _, zoom, size, language = look
    words = _words(language)
    canvas.page.set_viewport_size({"width": size[0], "height": size[1]})
    canvas.add(LOADER, checkpoint=TINY)
    panel = canvas.page.locator(".hlwq-panel[data-state=complete]")
    panel.wait_for(state="attached")
    canvas.page.evaluate(
        """([zoom, width]) => {
          const [x, y] = app.graph.nodes[0].pos;
          app.canvas.ds.scale = zoom;
          app.canvas.ds.offset = [-x + Math.min(80, width / 5) / zoom, -y + 120 / zoom];
          if (width < 800 || zoom > 1) app.canvas.ds.offset[1] = -y - app.graph.nodes[0].size[1] + 260 / zoom;
          app.canvas.setDirty(true, true);
        }""",
        [zoom, size[0]],
    )
    canvas.wait(
        "() => { const b = document.querySelector('.hlwq-panel').getBoundingClientRect(); return b.width > 60; }"
    )
    assert words["report.complete"] in panel.text_content()
    assert words["report.other.size"].format(family="LTX-2.3") in panel.text_content()
    canvas.wait("() => { const p = document.querySelector('.hlwq-panel'); return p.scrollWidth <= p.clientWidth + 1; }")
    texts = canvas.texts(".hlwq-panel") if zoom >= 1 and size == DESKTOP else []
    assert [(piece["text"], piece["contrast"]) for piece in texts if piece["contrast"] < 4.5] == []
    _keep(canvas, look, "report")
    # What is not there: one dialog within the window, every word of it in the language.
    canvas.choose(LOADER, "checkpoint", "LTX-2.3-22B-HLWQ-Q5")
    canvas.add("PreviewAny")
    canvas.connect(LOADER, "report", "PreviewAny")
    canvas.page.evaluate("() => app.queuePrompt(0)")
    dialog = canvas.page.locator(".hlwq-dialog")
    dialog.wait_for()
    box = dialog.bounding_box()
    assert (
        box["x"] >= 0 and box["x"] + box["width"] <= size[0] and box["y"] >= 0 and box["y"] + box["height"] <= size[1]
    )
    _keep(canvas, look, "dialog")
    assert words["refused"] in dialog.inner_text()
    assert words["asks"].split("{wanted}")[0].strip() in dialog.inner_text()
    texts = canvas.texts(".hlwq-dialog")
    assert len(texts) > 4
    assert [(piece["text"], piece["contrast"]) for piece in texts if piece["contrast"] < 4.5] == []
    dialog.get_by_role("button", name=words["close"]).click()
    dialog.wait_for(state="detached")
    assert canvas.failures == []


def _open(open_canvas: Callable[..., Canvas], look: Look) -> Canvas:
    vue, palette, _, _, language = look
    return open_canvas(Comfy__VueNodes__Enabled=vue, Comfy__ColorPalette=palette, Comfy__Locale=language)


@pytest.mark.parametrize("look", _pairwise(), ids=_name)
def test_every_pair(open_canvas: Callable[..., Canvas], holes: str, look: Look) -> None:
    _check(_open(open_canvas, look), look, holes)


PAGES = tuple(itertools.product(*(DIMENSIONS[i] for i in (0, 1, 4))))


@pytest.mark.everywhere
@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{'vue' if page[0] else 'classic'}-{page[1]}-{page[2]}")
def test_everything(open_canvas: Callable[..., Canvas], holes: str, page: tuple[bool, str, str]) -> None:
    """Every zoom and every width on one page: what the page itself depends on is set before it is opened."""
    vue, palette, language = page
    looks = [(vue, palette, zoom, size, language) for zoom in DIMENSIONS[2] for size in DIMENSIONS[3]]
    canvas = _open(open_canvas, looks[0])
    for look in looks:
        print(_name(look))  # seen where it fails
        canvas.clear()
        _check(canvas, look, holes)
