"""Other people's workflows, a folder of them named by $HLWQ_WORKFLOWS: their loaders exchanged by the menu, and what is missing then.

    HLWQ_WORKFLOWS=ComfyUI-LTXVideo/example_workflows python3 scripts/test.py tests/browser/test_foreign_workflows.py -s

Nobody's nodes but ComfyUI's are installed for it: what else a workflow needs is named, by pack.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from .canvas import Canvas

FOLDER = os.environ.get("HLWQ_WORKFLOWS")
WORKFLOWS = sorted(Path(FOLDER).expanduser().rglob("*.json")) if FOLDER else []
pytestmark = [pytest.mark.browser, pytest.mark.skipif(not FOLDER, reason="HLWQ_WORKFLOWS names no folder of workflows")]

# Of every node, those in subgraphs too: type, file, pack, whether it is known here, and where its outputs lead.
_NODES = """() => {
  const found = [];
  const walk = (graph) => graph.nodes.forEach((node) => {
    if (node.isSubgraphNode?.()) return walk(node.subgraph);
    const values = node.widgets?.length ? node.widgets.map((w) => w.value) : node.last_serialization?.widgets_values ?? [];
    found.push({
      type: node.type,
      file: values.find?.((value) => /\\.(safetensors|sft|gguf|ckpt)$/.test(value)) ?? null,
      pack: node.properties?.cnr_id ?? node.properties?.aux_id ?? null,
      known: !!LiteGraph.registered_node_types[node.type] || ["Reroute", "Note", "MarkdownNote", "PrimitiveNode"].includes(node.type),
      links: (node.outputs ?? []).reduce((sum, output) => sum + (output.links?.length ?? 0), 0),
    });
  });
  walk(app.graph);
  return found;
}"""
LOADERS = {
    "CheckpointLoaderSimple",
    "LTXVAudioVAELoader",
    "UNETLoader",
    "LTXAVTextEncoderLoader",
    "LatentUpscaleModelLoader",
    "LowVRAMCheckpointLoader",
    "LowVRAMAudioVAELoader",
    "LowVRAMLatentUpscaleModelLoader",
    "LTXVGemmaCLIPModelLoader",
}


def _links(nodes: list[dict[str, Any]]) -> int:
    return sum(node["links"] for node in nodes if node["type"] in LOADERS or node["type"].startswith("HLWQLoad"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_loaders_are_exchanged(canvas: Canvas, path: Path) -> None:
    """No link of a loader is lost, and what is left of the old loaders is no loader of LTX."""
    canvas.drop_file(path)
    before = canvas.page.evaluate(_NODES)
    count = canvas.page.evaluate("() => app.extensionManager.command.execute('HLWQ.ExchangeLoaders')")
    canvas.page.get_by_text("loaders exchanged" if count != 0 else "no loader of LTX").first.wait_for()
    after = canvas.page.evaluate(_NODES)
    assert _links(before) == _links(after)
    report = {
        "workflow": path.stem,
        "exchanged": sum(n["type"] in LOADERS for n in before) - sum(n["type"] in LOADERS for n in after),
        "ours": sorted(n["type"] for n in after if n["type"].startswith("HLWQ")),
        "left": sorted(f"{n['type']}: {n['file']}" for n in after if n["type"] in LOADERS),
        "needs": sorted({f"{n['pack']}: {n['type']}" for n in after if not n["known"]}),
    }
    print(json.dumps(report, indent=1))
    assert canvas.failures == []
