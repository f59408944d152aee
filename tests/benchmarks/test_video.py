"""The benchmark of whole workflows: core's nodes in the places of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hlwq_core.checkpoints import checkpoint, completeness
from hlwq_core.format.safefile import SafeFile

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


def test_the_folder_of_random_weights_is_one_that_the_pack_and_core_load(tmp_path):
    done = subprocess.run(
        [sys.executable, "video_base.py", str(tmp_path), "--tiny", "--bf16", str(tmp_path / "other disk")],
        cwd=FOLDER, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    models = tmp_path / "models"
    packed = checkpoint.open_checkpoint(models / "hlwq" / "LTX-2.3-random-HLWQ-Q5")
    completeness.whole(packed)
    core = SafeFile(models / "checkpoints" / "ltx23_random_bf16.safetensors")
    assert sorted(core) == sorted([*packed.names(), *packed.plain_names()])
    dense = core.tensor(packed.names()[0]).float()
    decoded = packed.decode(packed.names()[0]).float()[:, : dense.shape[1]]  # without what pads a block
    assert torch.nn.functional.cosine_similarity(decoded.flatten(), dense.flatten(), 0) > 0.99
    text = checkpoint.open_checkpoint(models / "text_encoders" / "gemma-3-random-HLWQ-Q5")
    assert len(text.names()) == 48 * 7
    assert (tmp_path / "custom_nodes" / "ComfyUI-HLWQ" / "hlwq_core").is_dir()
