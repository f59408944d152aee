"""ComfyUI's official LTX-2.3 templates with nothing but their loaders exchanged."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from hlwq_core import media

from ..canvas_to_api import convert
from .workflows import ask, run, saved, shorten_sigmas

CHECKPOINT = "LTX-2.3-tiny-HLWQ-Q5"
# Core's loader -> ours with the same outputs, and where each output is found there.
EXCHANGED = {
    "CheckpointLoaderSimple": ("HLWQLoadCheckpoint", {0: 0, 2: 1}),
    "LTXVAudioVAELoader": ("HLWQLoadCheckpoint", {0: 2}),
    "LTXAVTextEncoderLoader": ("HLWQLoadTextEncoder", {0: 0}),
    "LatentUpscaleModelLoader": ("HLWQLoadUpscaler", {0: 0}),
}
INPUTS = {
    "HLWQLoadCheckpoint": {"checkpoint": CHECKPOINT, "backend": "auto"},
    "HLWQLoadTextEncoder": {"text_encoder": "gemma_3_tiny.safetensors", "checkpoint": CHECKPOINT},
    "HLWQLoadUpscaler": {"upscaler": "ltx-2.3-spatial-upscaler-x2-1.1.safetensors"},
}


SMALL = {
    "width": 128,
    "height": 128,
    "duration": 1,
    "frame rate": 8,
    "frame rate(int)": 8,
    "boolean (enable prompt enhance)": False,
}


def template(name: str) -> dict[str, Any]:
    spec = importlib.util.find_spec("comfyui_workflow_templates_json")
    path = Path(spec.origin).parent / "templates" / f"{name}.json" if spec and spec.origin else None
    if path is None or not path.is_file():
        pytest.skip(f"this ComfyUI comes without the template {name}")
    return json.loads(path.read_text("utf-8"))


def exchange_loaders(prompt: dict[str, Any]) -> None:
    moved = {}
    for number, node in prompt.items():
        if node["class_type"] in EXCHANGED:
            ours, outputs = EXCHANGED[node["class_type"]]
            node.update(class_type=ours, inputs=dict(INPUTS[ours]))
            moved[number] = outputs
    assert len(moved) >= 3
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] in moved:
                node["inputs"][name] = [value[0], moved[value[0]][value[1]]]


def make_small(prompt: dict[str, Any]) -> None:
    """128 x 128 pixels, 9 frames at 8 a second, two steps a stage, the prompt as it is written."""
    left = set(SMALL)
    for node in prompt.values():
        title = node["_meta"]["title"].lower()
        if title in SMALL and node["class_type"].startswith("Primitive"):
            node["inputs"]["value"] = SMALL[title]
            left.discard(title)
    assert left <= {"frame rate", "frame rate(int)", "boolean (enable prompt enhance)"}, left
    for node in prompt.values():
        if node["class_type"] == "LoadAudio":
            node["inputs"]["audio"] = "voice.wav"
        if "lora_name" in node["inputs"]:
            node["inputs"]["lora_name"] = "ltx-2.3-tiny-distilled-lora.safetensors"
        if node["class_type"] == "LoadImage":
            node["inputs"]["image"] = "start.png"
        if node["class_type"] == "ResizeImagesByLongerEdge":
            node["inputs"]["longer_edge"] = 128
    shorten_sigmas(prompt)


TEMPLATES = ["video_ltx2_3_t2v", "video_ltx2_3_i2v", "video_ltx2_3_flf2v", "video_ltx2_3_ia2v"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_official_template_runs_with_our_loaders(server, name):
    prompt = convert(template(name), ask(server.url, "/object_info"))
    exchange_loaders(prompt)
    make_small(prompt)
    info = media.probe(saved(server, run(server, prompt)))
    assert info.video is not None and info.audio is not None
    assert (info.video.width, info.video.height, info.video.frames) == (128, 128, 9)
    assert info.video.rate == 8
    # ia2v itself saves the second of sound that was asked for, with the nine frames that LTX makes of it.
    assert abs(info.video.duration - info.audio.duration) < (2 / 8 if "ia2v" in name else 1 / 8)
