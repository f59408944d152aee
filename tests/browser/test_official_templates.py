"""ComfyUI's official LTX-2.3 templates, opened in the browser, with nothing but their loaders exchanged."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .canvas import Canvas
from .tiny_workflow import TINY

pytestmark = pytest.mark.browser

# Core's loader -> ours, the output that takes over for each of its outputs, and the values to choose.
EXCHANGED = {
    "CheckpointLoaderSimple": ["HLWQLoadCheckpoint", {"0": 0, "2": 1}, {"checkpoint": TINY}],
    "LTXVAudioVAELoader": ["HLWQLoadCheckpoint", {"0": 2}, {"checkpoint": TINY}],
    "LTXAVTextEncoderLoader": [
        "HLWQLoadTextEncoder",
        {"0": 0},
        {"text_encoder": "gemma_3_tiny.safetensors", "checkpoint": TINY},
    ],
    "LatentUpscaleModelLoader": [
        "HLWQLoadUpscaler",
        {"0": 0},
        {"upscaler": "ltx-2.3-spatial-upscaler-x2-1.1.safetensors"},
    ],
}
# Node title or type -> {widget: value}: the tiny model's files, 128 x 128 pixels, 9 frames, no prompt enhancement.
SMALL: dict[str, dict[str, Any]] = {
    "Width": {"value": 128},
    "Height": {"value": 128},
    "Duration": {"value": 1},
    "Frame Rate": {"value": 8},
    "Boolean (Enable Prompt Enhance)": {"value": False},
    "LoraLoaderModelOnly": {"lora_name": "ltx-2.3-tiny-distilled-lora.safetensors"},
    "LoraLoader": {"lora_name": "ltx-2.3-tiny-distilled-lora.safetensors"},
    "LoadImage": {"image": "example.png"},
    "ResizeImagesByLongerEdge": {"longer_edge": 128},
    "ManualSigmas": {"sigmas": "0.9, 0.4, 0.0"},
}

_EXCHANGE = """([exchanged, small]) => {
  let count = 0;
  const choose = (node, values) => {
    for (const [name, value] of Object.entries(values)) {
      const slot = node.inputs.findIndex((input) => input.widget?.name === name);
      if (slot >= 0 && node.inputs[slot].link != null) node.disconnectInput(slot);
      const widget = node.widgets.find((w) => w.name === name);
      widget.value = value;
      widget.callback?.(value);
    }
  };
  const walk = (graph) => {
    for (const node of [...graph.nodes]) {
      if (node.isSubgraphNode?.()) walk(node.subgraph);
      const values = small[node.title] ?? small[node.type];
      if (values) choose(node, values);
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


def _template(name: str) -> dict[str, Any]:
    spec = importlib.util.find_spec("comfyui_workflow_templates_json")
    path = Path(spec.origin).parent / "templates" / f"{name}.json" if spec and spec.origin else None
    if path is None or not path.is_file():
        pytest.skip(f"this ComfyUI comes without the template {name}")
    return json.loads(path.read_text("utf-8"))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", ["video_ltx2_3_t2v", "video_ltx2_3_i2v"])
def test_official_template(open_canvas: Callable[..., Canvas], media: None, name: str) -> None:
    canvas = open_canvas()
    canvas.drop(_template(name))
    assert canvas.page.evaluate(_EXCHANGE, [EXCHANGED, SMALL]) == 4
    assert canvas.missing_nodes() == []
    canvas.fit_view()
    assert canvas.run() is None
    played = canvas.video()
    assert (played["width"], played["height"]) == (128, 128)
    assert played["duration"] == pytest.approx(9 / 8, abs=1 / 8)
    assert canvas.failures == []
