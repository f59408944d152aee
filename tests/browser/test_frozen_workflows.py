"""The workflows of every earlier release on the canvas: what the Queue button would send is what it sent then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from .canvas import Canvas

pytestmark = pytest.mark.browser
FROZEN = sorted((Path(__file__).resolve().parents[1] / "frozen").glob("*/workflows/*.json"))


def test_frozen_workflows_load(open_canvas: Callable[..., Canvas]) -> None:
    assert len(FROZEN) >= 6
    canvas = open_canvas()
    for path in FROZEN:
        canvas.drop(json.loads(path.read_text("utf-8")), path.name)
        assert canvas.missing_nodes() == [], path
        queued = canvas.page.evaluate("async () => (await app.graphToPrompt()).output")
        then = json.loads((path.parent / "api" / path.name).read_text("utf-8"))
        now = {number: {"class_type": node["class_type"], "inputs": node["inputs"]} for number, node in queued.items()}
        for number, node in then.items():
            assert now[number]["class_type"] == node["class_type"], path
            # An input that was added since has its default; those of then have their values.
            assert {name: now[number]["inputs"].get(name) for name in node["inputs"]} == node["inputs"], path
        assert now.keys() == then.keys(), path
    assert canvas.failures == []
