"""A node's inputs as ComfyUI tells them, in the order of its definition."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIGNATURES = Path(__file__).parents[1] / "node_signatures.json"

# Every node type used; --signatures fetches these.
NODE_TYPES = (
    "CFGGuider", "CLIPTextEncode", "ComfyMathExpression", "EmptyLTXVLatentVideo", "GetVideoComponents",
    "HLWQDecodeSave", "HLWQLoadCheckpoint", "HLWQLoadDiffusionModel",
    "HLWQLoadTextEncoder", "HLWQLoadUpscaler", "HLWQUpscaleLatent", "ImageFromBatch", "ImageScale",
    "KSamplerSelect", "LTXVAudioVAEEncode", "LTXVConcatAVLatent", "LTXVConditioning", "LTXVContextWindows",
    "LTXVEmptyLatentAudio",
    "LTXVImgToVideoInplace", "LTXVPreprocess", "LTXVSeparateAVLatent", "LoadAudio", "LoadImage", "LoadVideo",
    "LoraLoaderModelOnly",
    "ManualSigmas", "PrimitiveFloat", "PrimitiveInt", "RandomNoise", "SamplerCustomAdvanced", "SetLatentNoiseMask",
    "SolidMask", "TrimAudioDuration", "VAELoader",
)  # fmt: skip

# What the two forms depend on in an input's options.
KEPT = (
    "control_after_generate",
    "image_upload",
    "audio_upload",
    "video_upload",
    "widgetType",
    "template",
    "default",
)

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


@dataclass(frozen=True)
class Slot:
    name: str
    type: str
    widget: bool
    default: Any
    extra: int  # widget values that the frontend keeps behind this one (seed control, upload button)


def slots(signature: dict[str, Any]) -> list[Slot]:
    """A node's inputs, in the order of its definition."""
    result = []
    for part in ("required", "optional"):
        for name, spec in signature["input"].get(part, {}).items():
            kind, options = spec[0], spec[1] if len(spec) > 1 else {}
            if kind == "COMFY_AUTOGROW_V3":
                template = options["template"]
                inner = template["input"]["required"]["value"][0]
                # The frontend keeps one free socket after those in use; two are enough for every graph here.
                result += [Slot(f"{name}.{letter}", inner, False, None, 0) for letter in template["names"][:2]]
                continue
            if isinstance(kind, list):
                kind = "COMBO"
            widget = kind in WIDGET_TYPES or "widgetType" in options
            extra = 0
            if options.get("control_after_generate"):
                extra = 1
            elif options.get("image_upload") or options.get("video_upload"):
                extra = 1
            elif options.get("audio_upload"):
                extra = 2
            result.append(Slot(name, kind, widget, options.get("default"), extra))
    return result


def fetch_signatures(server: str, types: Iterable[str]) -> dict[str, Any]:
    """The excerpt of /object_info that the workflows need; lists of the user's files are left out."""
    with urllib.request.urlopen(f"{server}/object_info", timeout=60) as answer:
        info = json.load(answer)
    excerpt = {}
    for name in sorted(types):
        node = info[name]
        inputs = {part: dict(entries) for part, entries in node["input"].items() if part != "hidden"}
        for entries in inputs.values():
            for key, spec in entries.items():
                options = {k: v for k, v in (spec[1] if len(spec) > 1 else {}).items() if k in KEPT}
                entries[key] = ["COMBO" if isinstance(spec[0], list) else spec[0], options]
        excerpt[name] = {
            "input": inputs,
            "output": node["output"],
            "output_name": node["output_name"],
            "python_module": node["python_module"],
        }
    return excerpt
