"""The workflows of every earlier release, which people have saved: they load and run in this one as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hlwq_core import media

from ..canvas_to_api import convert
from .workflows import CASES, ROOT, ask, run, saved, set_inputs, small, tiny_files

FROZEN = sorted((ROOT / "tests" / "frozen").glob("*/workflows/*.json"))
BLUEPRINTS = sorted((ROOT / "tests" / "frozen").glob("*/subgraphs/*.json"))


def _of_release(path: Path) -> str:
    return f"{path.parents[1].name}-{path.stem}"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def _api(path: Path) -> Path:
    return path.parent / "api" / path.name


def test_every_release_is_there() -> None:
    assert {path.parents[1].name for path in FROZEN} == {path.parents[1].name for path in BLUEPRINTS} >= {"0.1.0"}
    assert len([path for path in FROZEN if path.parents[1].name == "0.1.0"]) == 6


@pytest.mark.parametrize("path", FROZEN, ids=_of_release)
def test_canvas_form_still_means_the_same(server: Any, path: Path) -> None:
    """A canvas file keeps widgets by position: one inserted before others would give each the next one's value."""
    assert convert(_read(path), ask(server.url, "/object_info")) == _read(_api(path))


@pytest.mark.parametrize("path", FROZEN, ids=_of_release)
def test_runs(server: Any, path: Path) -> None:
    (width, height, length, rate), (frames, shown) = CASES[path.stem]
    prompt = small(tiny_files(_read(_api(path))), width, height, length, rate)
    set_inputs(prompt, Save={"filename_prefix": f"video/frozen-{path.stem}"})
    info = media.probe(saved(server, run(server, prompt)))
    assert info.video is not None and info.audio is not None
    assert (info.video.width, info.video.height, info.video.frames) == (width, height, frames)
    assert abs(float(info.video.rate) - shown) < 0.01
    assert abs(info.video.duration - info.audio.duration) < 1 / shown


@pytest.mark.parametrize("path", BLUEPRINTS, ids=_of_release)
def test_blueprint_runs(server: Any, path: Path) -> None:
    prompt = small(tiny_files(convert(_read(path), ask(server.url, "/object_info"))), 64, 64, 9, 24.0)
    if "image" in path.stem:  # the picture comes from outside the blueprint
        prompt["picture"] = {"class_type": "LoadImage", "inputs": {"image": "start.png"}, "_meta": {"title": "Picture"}}
        (scale,) = [n for n in prompt.values() if n["class_type"] == "ImageScale" and "image" not in n["inputs"]]
        scale["inputs"]["image"] = ["picture", 0]
    info = media.probe(saved(server, run(server, prompt)))
    assert info.video is not None and info.video.frames == 9 and info.audio is not None
