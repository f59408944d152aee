"""Queue a workflow on a running ComfyUI and read back the file that it saved."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

from hlwq_core import media

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED_TO_TINY = {
    "LTX-2.3-22B-HLWQ-Q5": "LTX-2.3-tiny-HLWQ-Q5",
    "gemma_3_12B_it.safetensors": "gemma_3_tiny.safetensors",
    "ltx_2.3_22b_distilled_1.1_lora_dynamic_fro09_avg_rank_111_bf16.safetensors": (
        "ltx-2.3-tiny-distilled-lora.safetensors"
    ),
    "ltx-2.5-22b-distilled-HLWQ-Q5.safetensors": "LTX-2.5-tiny-HLWQ-Q5.safetensors",
    "gemma4-12b-with-proj-ltx-2.5-comfy-int8-convrot.safetensors": "gemma4-tiny-with-proj-HLWQ-Q5.safetensors",
    "ltx-2.5-video-vae-bf16.safetensors": "ltx-2.5-tiny-video-vae.safetensors",
    "ltx-2.5-audio-vae-bf16.safetensors": "ltx-2.5-tiny-audio-vae.safetensors",
    "ltx-2.5-latent-spatial-upscaler-x2-bf16-1.0.safetensors": "ltx-2.5-tiny-spatial-upscaler-x2.safetensors",
    "example.png": "start.png",
    "audio.wav": "voice.wav",
}

# Stem; width, height, frames and rate asked for; frames and rate of the result.
CASES = {
    "hlwq_ltx23_text_to_video": ((96, 64, 17, 24.0), (17, 24)),
    "hlwq_ltx23_image_to_video": ((64, 96, 9, 12.5), (9, 12.5)),
    "hlwq_ltx23_two_stage": ((128, 128, 9, 25.0), (9, 25)),
    "hlwq_ltx23_image_to_video_two_stage": ((128, 128, 9, 24.0), (9, 24)),
    "hlwq_ltx23_temporal_upscale": ((64, 64, 17, 24.0), (33, 48)),
    "hlwq_ltx23_audio_to_video": ((64, 64, 25, 24.0), (25, 24)),
    "hlwq_ltx23_extend": ((64, 64, 25, 24.0), (33, 24)),  # 25 frames of clip.mp4, 17 of them repeated
    "hlwq_ltx23_long_video": ((64, 64, 33, 24.0), (33, 24)),
    "hlwq_ltx25_text_to_video": ((128, 192, 17, 24.0), (17, 24)),
    "hlwq_ltx25_image_to_video": ((192, 128, 9, 24.0), (9, 24)),
}


def skip_unless_known(server: Any, stem: str) -> None:
    """Skip where the server's ComfyUI does not know the model that a workflow is for."""
    if "ltx25" in stem and not (server.base / "models" / "diffusion_models").is_dir():
        pytest.skip("LTX-2.5 needs ComfyUI 0.32.0 or newer")


def ask(url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """GET, or POST of `body`; a refusal by ComfyUI fails with what it says."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{path}: {error.code} {error.read().decode()[:3000]}") from error


def api(stem: str) -> dict[str, Any]:
    """The API form of a shipped workflow, with the tiny model's files."""
    return tiny_files(json.loads((ROOT / "workflows" / "api" / f"{stem}.json").read_text("utf-8")))


def tiny_files(prompt: dict[str, Any]) -> dict[str, Any]:
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if isinstance(value, str):
                node["inputs"][name] = PUBLISHED_TO_TINY.get(value, value)
    return prompt


def set_inputs(prompt: dict[str, Any], **by_title: dict[str, Any]) -> None:
    """Set inputs of nodes by title; `_` in the keyword stands for a space."""
    for title, inputs in by_title.items():
        (node,) = [n for n in prompt.values() if n["_meta"]["title"] == title.replace("_", " ")]
        unknown = inputs.keys() - node["inputs"].keys()
        assert not unknown, f"{title} has no {unknown}"
        node["inputs"].update(inputs)


def shorten_sigmas(prompt: dict[str, Any]) -> None:
    """One step from the first sigma and one from the last but one, for each sampler."""
    for node in prompt.values():
        if node["class_type"] == "ManualSigmas":
            sigmas = [s.strip() for s in node["inputs"]["sigmas"].split(",")]
            node["inputs"]["sigmas"] = f"{sigmas[0]}, {sigmas[-2]}, 0.0"


def small(prompt: dict, width: int, height: int, length: int, rate: float) -> dict:
    set_inputs(
        prompt, Width={"value": width}, Height={"value": height}, Length={"value": length}, Frame_rate={"value": rate}
    )
    shorten_sigmas(prompt)
    return prompt


def write_clip(server: Any, frames: int = 25) -> None:
    """The video that the workflow `extend` goes on from, in the server's input folder."""
    pictures = torch.linspace(0, 1, frames).view(-1, 1, 1, 1).repeat(1, 64, 64, 3)
    sound = media.Sound(0.5 * torch.sin(torch.arange(24_000.0) / 10).repeat(2, 1), 24_000)
    media.write_video(server.base / "input" / "clip.mp4", pictures, media.frame_rate(24), sound)


def run(server: Any, prompt: dict[str, Any], timeout: float = 240) -> dict[str, Any]:
    """Queue, wait for the end, return the outputs by node id."""
    number = ask(server.url, "/prompt", {"prompt": prompt})["prompt_id"]
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        entry = ask(server.url, f"/history/{number}").get(number)
        if entry:
            status = entry["status"]
            errors = [m[1] for m in status["messages"] if m[0] == "execution_error"]
            told = "\n".join(f"{e['node_type']}: {e['exception_message']}" for e in errors)
            assert status["status_str"] == "success", told
            return entry["outputs"]
        time.sleep(0.2)
    ask(server.url, "/interrupt", {})
    raise AssertionError(f"not done after {timeout} s")


def saved(server: Any, outputs: dict[str, Any]) -> Path:
    """The one video file among the outputs."""
    files = [f for output in outputs.values() for f in output.get("images", []) if f["filename"].endswith(".mp4")]
    assert len(files) == 1, outputs
    return server.base / "output" / files[0]["subfolder"] / files[0]["filename"]


def forget_earlier_runs(server: Any) -> None:
    """Empty ComfyUI's cache of results: the session's server may have loaded the checkpoint for another test."""
    body = json.dumps({"unload_models": True, "free_memory": True}).encode()
    urllib.request.urlopen(urllib.request.Request(f"{server.url}/free", body), timeout=30).close()
    # ComfyUI may be on its way from the last prompt to the next, and would empty it behind that one.
    number = {"class_type": "PrimitiveInt", "inputs": {"value": 0}, "_meta": {"title": "Number"}}
    run(
        server,
        {"1": number, "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}, "_meta": {"title": "Show"}}},
    )
