"""The shipped workflows, made small: same graph, with the tiny model's file names, a small picture, few frames."""

from __future__ import annotations

import io
import json
import math
import struct
import tempfile
import urllib.request
import wave
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hlwq_core import media

WORKFLOWS = sorted((Path(__file__).resolve().parents[2] / "workflows").glob("*ltx23*.json"))
# These need a newer ComfyUI than the oldest that the pack supports.
LTX25 = sorted((Path(__file__).resolve().parents[2] / "workflows").glob("*ltx25*.json"))
TINY = "LTX-2.3-tiny-HLWQ-Q5"
NAMES = {
    "LTX-2.3-22B-HLWQ-Q5": TINY,
    "gemma_3_12B_it.safetensors": "gemma_3_tiny.safetensors",
    "ltx_2.3_22b_distilled_1.1_lora_dynamic_fro09_avg_rank_111_bf16.safetensors": (
        "ltx-2.3-tiny-distilled-lora.safetensors"
    ),
    "ltx-2.5-22b-distilled-HLWQ-Q5.safetensors": "LTX-2.5-tiny-HLWQ-Q5.safetensors",
    "gemma4-12b-with-proj-ltx-2.5-comfy-int8-convrot.safetensors": "gemma4-tiny-with-proj-HLWQ-Q5.safetensors",
    "ltx-2.5-video-vae-bf16.safetensors": "ltx-2.5-tiny-video-vae.safetensors",
    "ltx-2.5-audio-vae-bf16.safetensors": "ltx-2.5-tiny-audio-vae.safetensors",
    "ltx-2.5-latent-spatial-upscaler-x2-bf16-1.0.safetensors": "ltx-2.5-tiny-spatial-upscaler-x2.safetensors",
}
SIZES = {"Width": 128, "Height": 64, "Length": 9}


def tiny(path: Path) -> dict[str, Any]:
    """One of WORKFLOWS as a canvas workflow that the tiny model runs in seconds."""
    text = path.read_text("utf-8")
    for full, small in NAMES.items():
        text = text.replace(json.dumps(full), json.dumps(small))
    workflow = json.loads(text)
    for node in workflow["nodes"]:
        if node.get("title") in SIZES:
            node["widgets_values"][0] = SIZES[node["title"]]
        elif node["type"] == "ManualSigmas":
            sigmas = node["widgets_values"][0].split(",")
            node["widgets_values"][0] = ", ".join((sigmas[0].strip(), sigmas[-2].strip(), "0.0"))
    return workflow


def upload_media(url: str) -> None:
    """Put the start image, the audio and the video that the workflows name into the server's input folder."""
    picture = io.BytesIO()
    Image.radial_gradient("L").resize((128, 64)).convert("RGB").save(picture, "PNG")
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        tone = (int(9000 * math.sin(2 * math.pi * 440 * t / 16000)) for t in range(16000))
        file.writeframes(b"".join(struct.pack("<h", value) for value in tone))
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        media.write_video(clip, torch.rand(25, 64, 128, 3), media.frame_rate(24))
        video = clip.read_bytes()
    files = (("example.png", picture.getvalue()), ("audio.wav", sound.getvalue()), ("clip.mp4", video))
    for name, data in files:
        boundary = "hlwq-test"
        fields = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'.encode()
            + data
            + f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue'.encode()
            + f"\r\n--{boundary}--\r\n".encode()
        )
        request = urllib.request.Request(
            f"{url}/upload/image", fields, {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        )
        urllib.request.urlopen(request, timeout=30).close()
