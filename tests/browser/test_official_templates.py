"""ComfyUI's official LTX-2.3 templates, opened in the browser, with nothing but their loaders exchanged."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.official_templates import EXCHANGED, LORA, NAMES, NAMES_LTX2, NEEDS_DEPTH, skip_unless_known, template

from .canvas import Canvas

pytestmark = pytest.mark.browser
RUN_HERE = ("video_ltx2_3_t2v", "video_ltx2_3_i2v")  # tests/http runs all of them

# Node title or type -> {widget: value}: the tiny model's files, 128 x 128 pixels, 9 frames, no prompt enhancement.
SMALL: dict[str, dict[str, Any]] = {
    "Width": {"value": 128},
    "Height": {"value": 128},
    "Duration": {"value": 1},
    "Frame Rate": {"value": 8},
    "Boolean (Enable Prompt Enhance)": {"value": False},
    "LoraLoaderModelOnly": {"lora_name": LORA},
    "LoraLoader": {"lora_name": LORA},
    "LoadImage": {"image": "example.png"},
    "ResizeImagesByLongerEdge": {"longer_edge": 128},
    "ResizeImageMaskNode": {"resize_type.longer_size": 128, "resize_type.width": 128, "resize_type.height": 128},
    "ManualSigmas": {"sigmas": "0.9, 0.4, 0.0"},
}

# What the menu's command puts in is given the tiny model's files.
OURS: dict[str, dict[str, Any]] = {ours: values for ours, _, values in EXCHANGED.values()}

_CHOOSE = """(small) => {
  const choose = (node, values) => {
    for (const [name, value] of Object.entries(values)) {
      const slot = node.inputs.findIndex((input) => input.widget?.name === name);
      if (slot >= 0 && node.inputs[slot].link != null) node.disconnectInput(slot);
      const widget = node.widgets.find((w) => w.name === name);
      if (!widget && name.includes(".")) continue;  // a size of the way of resizing that was not chosen
      widget.value = value;
      widget.callback?.(value);
    }
  };
  const walk = (graph) => {
    for (const node of [...graph.nodes]) {
      if (node.isSubgraphNode?.()) walk(node.subgraph);
      const values = small[node.title] ?? small[node.type];
      if (values) choose(node, values);
      for (const widget of node.widgets ?? []) {  // a newer core's word where this one's node takes a number
        if (widget.type === "number" && typeof widget.value === "string") widget.value = widget.options.min;
      }
    }
  };
  walk(app.graph);
}"""
_TYPES = """() => {
  const types = [];
  const walk = (graph) => graph.nodes.forEach((n) => (n.isSubgraphNode?.() ? walk(n.subgraph) : types.push(n.type)));
  walk(app.graph);
  return types.sort();
}"""


# What frontend 1.58.1 leaves unconnected by itself, in one of the templates (video_ltx2_i2v_lora).
LOST = {("SaveVideo", "video")}


def _unconnected(canvas: Canvas) -> set[tuple[str, str, str]]:
    """Required inputs that nothing feeds in what would be queued: node, its class, input."""
    queued = canvas.page.evaluate("async () => (await app.graphToPrompt()).output")
    info = canvas.page.evaluate("async () => (await fetch('/object_info')).json()")
    found = set()
    for number, node in queued.items():
        required = info[node["class_type"]]["input"].get("required", {})
        needed = {name for name, spec in required.items() if not str(spec[0]).startswith("COMFY_")}
        found |= {(number, node["class_type"], name) for name in needed - node["inputs"].keys()}
    return found


def _exchanged(canvas: Canvas, name: str) -> int:
    """Drop the template and exchange its loaders as the menu does; how many there were."""
    workflow = template(name)
    known = set(canvas.page.evaluate("() => Object.keys(LiteGraph.registered_node_types)"))
    skip_unless_known(workflow, known)
    canvas.drop(workflow)
    before = [node for node in canvas.page.evaluate(_TYPES) if node in EXCHANGED]
    unconnected = _unconnected(canvas)
    assert {(kind, name) for _, kind, name in unconnected} <= LOST
    canvas.page.evaluate("() => app.extensionManager.command.execute('HLWQ.ExchangeLoaders')")
    assert _unconnected(canvas) <= unconnected
    assert not EXCHANGED.keys() & set(canvas.page.evaluate(_TYPES))
    canvas.page.evaluate(_CHOOSE, SMALL | OURS)
    assert canvas.missing_nodes() == []
    return len(before)


def test_exchange_is_undone_in_one_step(canvas: Canvas) -> None:
    """One loader of ours for all that loaded a part of the checkpoint; undo brings the workflow back as it was."""
    workflow = template(RUN_HERE[0])
    skip_unless_known(workflow, set(canvas.page.evaluate("() => Object.keys(LiteGraph.registered_node_types)")))
    canvas.drop(workflow)
    before = canvas.page.evaluate(_TYPES)
    canvas.page.evaluate("() => app.extensionManager.command.execute('HLWQ.ExchangeLoaders')")
    canvas.page.get_by_text("4 loaders exchanged").first.wait_for()
    assert canvas.page.evaluate(_TYPES).count("HLWQLoadCheckpoint") == 1
    canvas.page.wait_for_timeout(1000)
    canvas.page.evaluate("() => app.extensionManager.command.execute('Comfy.Undo')")
    canvas.wait(f"() => JSON.stringify(({_TYPES})()) === {json.dumps(json.dumps(before, separators=(',', ':')))}")
    canvas.clear()
    canvas.add("CheckpointLoaderSimple")
    canvas.page.evaluate("() => app.extensionManager.command.execute('HLWQ.ExchangeLoaders')")
    canvas.page.get_by_text("no loader of LTX").first.wait_for()
    assert canvas.page.evaluate(_TYPES) == ["CheckpointLoaderSimple"], "a loader of other models is left alone"
    assert canvas.failures == []


def test_the_menu_has_the_exchange(canvas: Canvas) -> None:
    """ComfyUI's menu and its search of commands know it by its name."""
    labels = canvas.page.evaluate(
        "() => app.extensionManager.command.commands.filter((c) => c.id === 'HLWQ.ExchangeLoaders').map((c) => c.label)"
    )
    assert labels == ["Exchange LTX loaders for HLWQ"]


@pytest.mark.parametrize("name", [*(name for name in NAMES if name not in RUN_HERE), *NAMES_LTX2])
def test_loaders_are_exchanged_on_the_canvas(open_canvas: Callable[..., Canvas], media: None, name: str) -> None:
    """What would be queued has none of core's loaders left, and every socket they fed is fed by ours."""
    canvas = open_canvas()
    assert _exchanged(canvas, name) >= 3
    queued = canvas.page.evaluate("async () => (await app.graphToPrompt()).output")
    used = {node["class_type"] for node in queued.values()}
    assert not used & EXCHANGED.keys() and {"HLWQLoadCheckpoint", "HLWQLoadTextEncoder"} <= used
    if name == NEEDS_DEPTH:
        assert "LoadMoGeModel" in used


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", RUN_HERE)
def test_official_template(open_canvas: Callable[..., Canvas], media: None, name: str) -> None:
    canvas = open_canvas()
    assert _exchanged(canvas, name) == 4
    canvas.fit_view()
    assert canvas.run() is None
    played = canvas.video()
    assert (played["width"], played["height"]) == (128, 128)
    assert played["duration"] == pytest.approx(9 / 8, abs=1 / 8)
    assert canvas.failures == []
