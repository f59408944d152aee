"""A real browser on the real frontend: Debian's Chromium, headless, driven by Playwright.

Screenshots of failed tests are kept in $HLWQ_SCREENSHOTS (else <temp>/hlwq-screenshots).
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

from .canvas import PATIENCE, Canvas
from .tiny_workflow import TINY, upload_media

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
]
# What a person who has used ComfyUI before has behind them: no tutorial, no news, no survey.
SETTINGS: dict[str, Any] = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Locale": "en",
    "Comfy.ColorPalette": "dark",
    "Comfy.Workflow.Persist": False,
    "Comfy.Workflow.WarnBlueprintOverwrite": False,
    "Comfy.Notification.ShowVersionUpdates": False,
    "Comfy.UseNewMenu": "Top",
    "Comfy.VueNodes.Enabled": False,
    "Comfy.VueNodes.AutoScaleLayout": False,
    "Comfy.RightSidePanel.ShowErrorsTab": True,
    "Comfy.RightSidePanel.IsOpen": False,
    "Comfy.Minimap.Visible": False,
}
SCREENSHOTS = Path(os.environ.get("HLWQ_SCREENSHOTS") or Path(tempfile.gettempdir(), "hlwq-screenshots"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes every combination runs only when it is asked for."""
    if "everywhere" in (config.option.markexpr or ""):
        return
    for item in items:
        if item.get_closest_marker("everywhere"):
            item.add_marker(pytest.mark.skip(reason="every combination: pytest -m everywhere tests/browser"))


def _chromium() -> str | None:
    given = os.environ.get("CHROMIUM_PATH")
    return given or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="package")
def chromium() -> Iterator[Any]:
    """The browser, once for this folder; each test takes a fresh context of it.

    Not for the session: while Playwright runs, its event loop occupies the thread, and tests/comfy need their own.
    """
    path = _chromium()
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("No Chromium: install Debian's package chromium")
        pytest.skip("No Chromium here: install it (apt-get install chromium) or set CHROMIUM_PATH")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@pytest.fixture(scope="session")
def comfyui(server: Any) -> str:
    """The URL of the session's ComfyUI."""
    return str(getattr(server, "url", server)).rstrip("/")


@pytest.fixture(scope="session")
def tiny_models(tiny: Path) -> Path:
    """The folder of the tiny models; `tiny` makes a workflow small here."""
    return tiny


@pytest.fixture(scope="session")
def media(comfyui: str) -> None:
    """The start image and the sound that the workflows name, in the server's input folder."""
    upload_media(comfyui)


def _beside(server: Any, tiny: Path, name: str) -> Path:
    """A copy of the tiny checkpoint in the server's models/hlwq, gone with this folder's tests: others expect one."""
    target = Path(server.base) / "models" / "hlwq" / name
    shutil.copytree(tiny / "models" / "hlwq" / TINY, target)
    return target


def _gone(server: Any, folder: Path) -> None:
    """Removed, and no longer offered: the server looks at its folders when it is asked, and answers before it has seen all."""
    shutil.rmtree(folder)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with urllib.request.urlopen(f"{server.url}/object_info/HLWQLoadCheckpoint", timeout=PATIENCE) as answer:
            if folder.name.encode() not in answer.read():
                return
        time.sleep(0.2)


@pytest.fixture(scope="package")
def holes(server: Any, tiny: Path) -> Iterator[str]:
    """A checkpoint that lacks its last chunk of codes; its name."""
    folder = _beside(server, tiny, "LTX-2.3-tiny-with-holes")
    sorted(folder.rglob("chunk_*_codes.safetensors"))[-1].unlink()
    yield folder.name
    _gone(server, folder)


@pytest.fixture(scope="package")
def truncated(server: Any, tiny: Path) -> Iterator[str]:
    """A checkpoint whose first chunk of codes ends too early; its name."""
    folder = _beside(server, tiny, "LTX-2.3-tiny-truncated")
    chunk = min(folder.rglob("chunk_*_codes.safetensors"))
    chunk.write_bytes(chunk.read_bytes()[:-4096])
    yield folder.name
    _gone(server, folder)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.when == "call":
        item.stash[OUTCOME] = report
    return report


OUTCOME = pytest.StashKey[pytest.TestReport]()


@pytest.fixture
def open_canvas(chromium: Any, comfyui: str, request: pytest.FixtureRequest) -> Iterator[Callable[..., Canvas]]:
    """`open_canvas(**settings) -> Canvas`: a fresh context with these settings, on an empty graph."""
    contexts = []

    def make(**settings: Any) -> Canvas:
        values = SETTINGS | {name.replace("__", "."): value for name, value in settings.items()}
        seed = urllib.request.Request(
            f"{comfyui}/api/settings", json.dumps(values).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(seed, timeout=PATIENCE).close()
        context = chromium.new_context(viewport={"width": 1600, "height": 900}, service_workers="block", locale="en-US")
        contexts.append(context)
        context.set_default_timeout(PATIENCE * 1000)
        # Nothing outside the test's own server: no telemetry, no news, the same with and without a network.
        context.route(lambda url: not url.startswith((comfyui, "data:", "blob:")), lambda route: route.abort())
        return Canvas(context.new_page(), comfyui)

    yield make
    report = request.node.stash.get(OUTCOME, None)
    for number, context in enumerate(contexts):
        if report is not None and report.failed:
            SCREENSHOTS.mkdir(parents=True, exist_ok=True)
            for page in context.pages:
                page.screenshot(path=SCREENSHOTS / f"{request.node.name}-{number}.png", timeout=10_000)
        context.close()


@pytest.fixture
def canvas(open_canvas: Callable[..., Canvas]) -> Canvas:
    """An empty graph in the classic rendering."""
    return open_canvas()


@pytest.fixture
def picture() -> Callable[..., None]:
    """`picture(canvas, name, of=selector)`: keep a screenshot for the README, if $HLWQ_PICTURES names a folder."""

    def keep(canvas: Canvas, name: str, of: str | None = None) -> None:
        folder = os.environ.get("HLWQ_PICTURES")
        if folder:
            target = canvas.page.locator(of).first if of else canvas.page
            target.screenshot(path=Path(folder, f"{name}.jpg"), type="jpeg", quality=80)

    return keep


@pytest.fixture
def frame_strip() -> Callable[..., None]:
    """`frame_strip(video, name)`: every other frame of an MP4 side by side, kept as `picture` keeps its screenshots."""

    def keep(video: bytes, name: str) -> None:
        folder = os.environ.get("HLWQ_PICTURES")
        if folder:
            with av.open(io.BytesIO(video)) as file:
                frames = [frame.to_image() for frame in file.decode(video=0)][::2]
            width, height = (2 * side for side in frames[0].size)
            strip = Image.new("RGB", (len(frames) * (width + 8) - 8, height), "white")
            for number, frame in enumerate(frames):
                strip.paste(frame.resize((width, height)), (number * (width + 8), 0))
            strip.save(Path(folder, f"{name}.jpg"), quality=85)

    return keep


@pytest.fixture
def film() -> Callable[..., AbstractContextManager[Callable[[float], None]]]:
    """`with film(canvas, name) as hold:` what the page shows meanwhile, as an animated WebP, kept as `picture` keeps its
    screenshots; `hold(seconds)` stays with what there is, where a film is made."""

    @contextlib.contextmanager
    def keep(canvas: Canvas, name: str) -> Iterator[Callable[[float], None]]:
        folder = os.environ.get("HLWQ_PICTURES")
        if not folder:
            yield lambda seconds: None
            return
        shown: list[tuple[float, bytes]] = []
        session = canvas.page.context.new_cdp_session(canvas.page)

        def take(event: dict[str, Any]) -> None:
            shown.append((event["metadata"]["timestamp"], base64.b64decode(event["data"])))
            session.send("Page.screencastFrameAck", {"sessionId": event["sessionId"]})

        session.on("Page.screencastFrame", take)
        size = {"maxWidth": 960, "maxHeight": 540}
        session.send("Page.startScreencast", {"format": "jpeg", "quality": 90, "everyNthFrame": 1, **size})
        yield lambda seconds: canvas.page.wait_for_timeout(1000 * seconds)
        session.send("Page.stopScreencast")
        kept = [shown[0]]
        for moment, data in shown[1:]:
            if moment - kept[-1][0] >= 0.15:
                kept.append((moment, data))
        kept.append(shown[-1])
        # Nobody wants to see a machine without a card wait.
        lasting = [int(1000 * min(b[0] - a[0], 1.5)) for a, b in zip(kept, kept[1:])] + [3000]
        first, *others = (Image.open(io.BytesIO(data)) for _, data in kept)
        first.save(
            Path(folder, f"{name}.webp"), save_all=True, append_images=others, duration=lasting, quality=55, method=2
        )

    return keep
