"""ComfyUI's official templates of LTX-2.3, LTX-2.5 and LTX-2 with nothing but their loaders exchanged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from hlwq_core import media

from ..canvas_to_api import convert
from ..official_templates import (
    EXCHANGED,
    EXCHANGED_LTX2,
    EXCHANGED_LTX25,
    LORA,
    LTX2,
    NAMES,
    NAMES_LTX25,
    NEEDS_DEPTH,
    RUN_LTX2,
    skip_unless_known,
    template,
)
from .workflows import ask, run, saved, shorten_sigmas

SMALL = {
    "width": 128,
    "height": 128,
    "duration": 1,
    "int (duration)": 1,
    "frame rate": 8,
    "frame rate(int)": 8,
    "int (fps)": 9,  # times the duration it is the number of frames
    "boolean (enable prompt enhance)": False,
}
# Node -> inputs, where it has them: the files of the tests, and pictures of 128 x 128.
FILES_AND_SIZES: dict[str, dict[str, Any]] = {
    "LoadAudio": {"audio": "voice.wav"},
    "LoadImage": {"image": "start.png"},
    "LoadVideo": {"file": "control.mp4"},
    "LoraLoader": {"lora_name": LORA},
    "LoraLoaderModelOnly": {"lora_name": LORA},
    "KSampler": {"steps": 2},
    "LTXVScheduler": {"steps": 2},
    "ResizeAndPadImage": {"target_width": 128, "target_height": 128},
    "ResizeImagesByLongerEdge": {"longer_edge": 128},
    "ResizeImageMaskNode": {
        "resize_type.longer_size": 128,
        "resize_type.width": 128,
        "resize_type.height": 128,
    },
}


def exchange_loaders(prompt: dict[str, Any], exchanged: dict[str, Any] = EXCHANGED) -> None:
    moved = {}
    for number, node in prompt.items():
        if node["class_type"] in exchanged:
            ours, outputs, inputs = exchanged[node["class_type"]]
            node.update(class_type=ours, inputs=dict(inputs))
            moved[number] = outputs
    assert len(moved) >= 3
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] in moved:
                node["inputs"][name] = [value[0], moved[value[0]][value[1]]]


def leave_out_depth(prompt: dict[str, Any]) -> None:
    """The frames of the control video where the template gives the depth that MoGe sees in them."""
    (frames,) = [i for i, node in prompt.items() if node["class_type"] == "GetVideoComponents"]
    depth = {i for i, node in prompt.items() if node["class_type"] == "MoGeRender"}
    assert depth
    for number in [i for i, n in prompt.items() if "MoGe" in n["class_type"] or n["class_type"] == "ImageToMask"]:
        del prompt[number]
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] in depth:
                node["inputs"][name] = [frames, 0]


def make_small(prompt: dict[str, Any]) -> None:
    """128 x 128 pixels, 9 frames at 8 a second, two steps a stage, the prompt as it is written."""
    for node in prompt.values():
        title = node["_meta"]["title"].lower()
        if title in SMALL and node["class_type"].startswith("Primitive"):
            node["inputs"]["value"] = SMALL[title]
        for name, value in FILES_AND_SIZES.get(node["class_type"], {}).items():
            if name in node["inputs"]:
                node["inputs"][name] = value
    shorten_sigmas(prompt)


def leave_out_newer_values(prompt: dict[str, Any], info: dict[str, Any]) -> None:
    """Templates newer than ComfyUI: a word where a node of today's takes a number is left to the node's default."""
    for node in prompt.values():
        for name, spec in info[node["class_type"]]["input"].get("optional", {}).items():
            if spec[0] in ("INT", "FLOAT") and isinstance(node["inputs"].get(name), str):
                del node["inputs"][name]


@pytest.fixture(scope="module")
def control_video(server: Any) -> Path:
    """Nine frames of 128 x 128 at 8 a second, with a second of silence, in the server's input folder."""
    path = server.base / "input" / "control.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 128
        for number in range(9):
            picture = np.full((128, 128, 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def check(path: Path, longer_sound: bool = False, rate: int = 8) -> None:
    made = media.probe(path)
    assert made.video is not None and made.audio is not None
    assert (made.video.width, made.video.height, made.video.frames) == (128, 128, 9)
    assert made.video.rate == rate
    assert abs(made.video.duration - made.audio.duration) < (2 if longer_sound else 1) / rate


@pytest.mark.parametrize("name", NAMES_LTX25)
def test_official_template_of_ltx25(server: Any, name: str) -> None:
    """Transformer and text encoder packed, the VAEs by core's loader: one is the decoder that diffuses."""
    workflow = template(name)
    info = ask(server.url, "/object_info")
    skip_unless_known(workflow, set(info))
    prompt = convert(workflow, info)
    exchange_loaders(prompt, EXCHANGED_LTX25)
    make_small(prompt)
    for node in prompt.values():
        if node["class_type"] == "VAELoader":
            kind = "audio" if "audio" in node["inputs"]["vae_name"] else "video"
            node["inputs"]["vae_name"] = f"ltx-2.5-tiny-{kind}-vae.safetensors"
    check(saved(server, run(server, prompt)))


@pytest.fixture
def ltx2(server: Any, tiny: Path) -> Iterator[None]:
    """The tiny LTX-2 among the server's checkpoints, gone with the test: others expect one."""
    source = tiny / "ltx2" / "models" / "checkpoints" / LTX2
    link = server.base / "models" / "checkpoints" / LTX2
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(source)
    yield
    link.unlink()


@pytest.mark.parametrize("name", RUN_LTX2)
def test_official_template_of_ltx2(server: Any, ltx2: None, name: str) -> None:
    """One checkpoint with its VAEs; both streams share a text projection."""
    workflow = template(name)
    info = ask(server.url, "/object_info")
    skip_unless_known(workflow, set(info))
    prompt = convert(workflow, info)
    exchange_loaders(prompt, EXCHANGED_LTX2)
    make_small(prompt)
    for node in prompt.values():
        title = node["_meta"]["title"].lower()
        if title in ("length", "frame rate(float)"):
            node["inputs"]["value"] = 9 if title == "length" else 8
        if node["class_type"] == "EmptyImage":
            node["inputs"].update(width=128, height=128)
    # The rate of image to video stands in its nodes; at 25 a second a latent of the sound is as long as a frame.
    path, given = saved(server, run(server, prompt)), "i2v" in name
    check(path, longer_sound=given, rate=25 if given else 8)


@pytest.mark.parametrize("name", NAMES)
def test_official_template_runs_with_our_loaders(server: Any, control_video: Path, name: str) -> None:
    workflow = template(name)
    info = ask(server.url, "/object_info")
    skip_unless_known(workflow, set(info))
    prompt = convert(workflow, info)
    exchange_loaders(prompt)
    if name == NEEDS_DEPTH:
        leave_out_depth(prompt)
    make_small(prompt)
    leave_out_newer_values(prompt, info)
    # ia2v itself saves the second of sound that was asked for, with the nine frames that LTX makes of it.
    check(saved(server, run(server, prompt)), longer_sound="ia2v" in name)
