"""ComfyUI's official LTX-2.3 templates, opened in the browser, with nothing but their loaders exchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.official_templates import EXCHANGED, LORA, NAMES, NEEDS_DEPTH, skip_unless_known, template

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

_EXCHANGE = """([exchanged, small]) => {
  let count = 0;
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
      if (!(node.type in exchanged)) continue;
      const [type, outputs, choices] = exchanged[node.type];
      const ours = LiteGraph.createNode(type);
      graph.add(ours);
      ours.pos = [...node.pos];
      choose(ours, choices);
      for (const [from, to] of Object.entries(outputs)) {
        for (const id of [...(node.outputs[from].links ?? [])]) {
          const link = graph.links.get(id);
          ours.connect(to, graph.getNodeById(link.target_id), link.target_slot);
        }
      }
      graph.remove(node);
      count++;
    }
  };
  walk(app.graph);
  return count;
}"""


def _exchanged(canvas: Canvas, name: str) -> int:
    """Drop the template and exchange its loaders; how many there were."""
    workflow = template(name)
    known = set(canvas.page.evaluate("() => Object.keys(LiteGraph.registered_node_types)"))
    skip_unless_known(workflow, known)
    canvas.drop(workflow)
    count = canvas.page.evaluate(_EXCHANGE, [EXCHANGED, SMALL])
    assert canvas.missing_nodes() == []
    return count


@pytest.mark.parametrize("name", [name for name in NAMES if name not in RUN_HERE])
def test_loaders_are_exchanged_on_the_canvas(open_canvas: Callable[..., Canvas], media: None, name: str) -> None:
    """What would be queued has none of core's loaders left, and every socket they fed is fed by ours."""
    canvas = open_canvas()
    assert _exchanged(canvas, name) >= 3
    queued = canvas.page.evaluate("async () => (await app.graphToPrompt()).output")
    used = {node["class_type"] for node in queued.values()}
    assert not used & EXCHANGED.keys() and {"HLWQLoadCheckpoint", "HLWQLoadTextEncoder"} <= used
    if name == NEEDS_DEPTH:
        assert "LoadMoGeModel" in used
    info = canvas.page.evaluate("async () => (await fetch('/object_info')).json()")
    for number, node in queued.items():
        required = info[node["class_type"]]["input"].get("required", {})
        dynamic = {n for n, spec in required.items() if str(spec[0]).startswith("COMFY_")}
        assert required.keys() - dynamic <= node["inputs"].keys(), (number, node["class_type"])


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
