"""ComfyUI's official templates of LTX-2.3, LTX-2.5 and LTX-2, for tests/http and tests/browser: which there are, and what stands in for what."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

CHECKPOINT = "LTX-2.3-tiny-HLWQ-Q5"
LORA = "ltx-2.3-tiny-distilled-lora.safetensors"
UPSCALER = "ltx-2.3-spatial-upscaler-x2-1.1.safetensors"

NAMES = [
    "video_ltx2_3_t2v",
    "video_ltx2_3_i2v",
    "video_ltx2_3_flf2v",
    "video_ltx2_3_ia2v",
    "video_ltx2_3_id_lora",
    "video_ltx2_3_ic_lora",
    "template_ltx2_3_ic_lora_ingredients",
    "template_ltx2_3_style_transition",
]
# Of LTX-2.5: transformer and text encoder by our loaders; the VAEs stay with core's.
NAMES_LTX25 = ["video_ltx2_5_t2v", "video_ltx2_5_i2v", "video_ltx2_5_flf2v"]
# This one also loads MoGe 2 (moge_2_vitl_normal_fp16.safetensors by LoadMoGeModel), which estimates the depth of a
# control video. That is no part of LTX-2.3, and there is no tiny one: the control video goes in as it is.
NEEDS_DEPTH = "video_ltx2_3_ic_lora"

# Core's loader -> ours, the output that takes over for each of its outputs, and the values to choose.
EXCHANGED: dict[str, tuple[str, dict[int, int], dict[str, str]]] = {
    "CheckpointLoaderSimple": ("HLWQLoadCheckpoint", {0: 0, 2: 1}, {"checkpoint": CHECKPOINT, "backend": "auto"}),
    "LTXVAudioVAELoader": ("HLWQLoadCheckpoint", {0: 2}, {"checkpoint": CHECKPOINT, "backend": "auto"}),
    "LTXAVTextEncoderLoader": (
        "HLWQLoadTextEncoder",
        {0: 0},
        {"text_encoder": "gemma_3_tiny.safetensors", "checkpoint": CHECKPOINT},
    ),
    "LatentUpscaleModelLoader": ("HLWQLoadUpscaler", {0: 0}, {"upscaler": UPSCALER}),
}

LTX25 = "LTX-2.5-tiny-HLWQ-Q5.safetensors"
EXCHANGED_LTX25: dict[str, tuple[str, dict[int, int], dict[str, str]]] = {
    "UNETLoader": ("HLWQLoadDiffusionModel", {0: 0}, {"checkpoint": LTX25, "backend": "auto"}),
    "CLIPLoader": (
        "HLWQLoadTextEncoder",
        {0: 0},
        {"text_encoder": "gemma4-tiny-with-proj-HLWQ-Q5.safetensors", "checkpoint": LTX25},
    ),
    "LatentUpscaleModelLoader": (
        "HLWQLoadUpscaler",
        {0: 0},
        {"upscaler": "ltx-2.5-tiny-spatial-upscaler-x2.safetensors"},
    ),
}

NAMES_LTX2 = [
    "video_ltx2_t2v",
    "video_ltx2_t2v_distilled",
    "video_ltx2_i2v",
    "video_ltx2_i2v_distilled",
    "video_ltx2_i2v_lora",
    "video_ltx2_canny_to_video",
    "video_ltx2_depth_to_video",
]
# Of these one of each kind runs in the suite.
RUN_LTX2 = ["video_ltx2_t2v", "video_ltx2_i2v_distilled"]
LTX2 = "LTX-2-tiny-HLWQ-Q5.safetensors"
EXCHANGED_LTX2 = {
    core: (ours, outputs, {name: LTX2 if name == "checkpoint" else value for name, value in inputs.items()})
    for core, (ours, outputs, inputs) in EXCHANGED.items()
}


def template(name: str) -> dict[str, Any]:
    """The canvas form of an official template; skips where the installed templates have none of that name."""
    spec = importlib.util.find_spec("comfyui_workflow_templates_json")
    path = Path(spec.origin).parent / "templates" / f"{name}.json" if spec and spec.origin else None
    if path is None or not path.is_file():
        pytest.skip(f"the installed comfyui-workflow-templates have no {name}")
    return json.loads(path.read_text("utf-8"))


def types(workflow: dict[str, Any]) -> set[str]:
    """The types of its nodes, those within subgraphs too."""
    subgraphs = workflow.get("definitions", {}).get("subgraphs", [])
    inner = {graph["id"] for graph in subgraphs}
    return {node["type"] for graph in (workflow, *subgraphs) for node in graph["nodes"]} - inner


def skip_unless_known(workflow: dict[str, Any], known: set[str]) -> None:
    """Skip where this ComfyUI is older than the template: a node of the template's is not there yet.

    Args:
        known: the types of nodes that the server has, and those of the frontend.
    """
    if unknown := sorted(types(workflow) - known - {"MarkdownNote", "Note", "Reroute"}):
        pytest.skip(f"this ComfyUI has no node {', '.join(unknown)}, which the template uses")
