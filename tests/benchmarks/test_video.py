"""The benchmark of whole workflows: core's nodes in the places of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
CODE = """
import json, video
graph = video.graph_of({workflow!r}, video.SIZES[{workflow!r}])
print(json.dumps(video.by_core(graph, "bf16.safetensors", {{"text_encoder": "gemma.safetensors", "upscaler": "x2.safetensors"}})))
"""


@pytest.mark.parametrize("workflow", ["t2v", "two_stage"])
def test_the_graph_of_core_is_whole_and_has_none_of_our_nodes(workflow):
    code = CODE.format(workflow=workflow)
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    graph = json.loads(done.stdout)
    kinds = [node["class_type"] for node in graph.values()]
    assert not [kind for kind in kinds if kind.startswith("HLWQ")]
    assert {"CheckpointLoaderSimple", "VAEDecodeTiled", "LTXVAudioVAEDecode", "SaveVideo"} <= set(kinds)
    assert kinds.count("LTXVLatentUpsampler") == (workflow == "two_stage")
    for node in graph.values():
        for value in node["inputs"].values():
            assert not isinstance(value, list) or value[0] in graph, f"{node['class_type']} reads what is not there"
