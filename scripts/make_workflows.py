"""Write workflows/*.json (canvas), workflows/api/*.json (API twins), their thumbnails and subgraphs/*.json.

    python scripts/make_workflows.py                          write everything
    python scripts/make_workflows.py --signatures URL         first take the node signatures from a running ComfyUI

Both forms of a workflow come from one description here, so they cannot drift apart. The order of a node's inputs and
widgets comes from scripts/node_signatures.json, an excerpt of ComfyUI's /object_info for the node types used.
"""

from __future__ import annotations

import argparse
import json
import math
import urllib.request
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SIGNATURES = Path(__file__).with_name("node_signatures.json")

CHECKPOINT = "LTX-2.3-22B-HLWQ-Q5"
TEXT_ENCODER = "gemma_3_12B_it.safetensors"
LORA = "ltx_2.3_22b_distilled_1.1_lora_dynamic_fro09_avg_rank_111_bf16.safetensors"
SPATIAL = "ltx-2.3-spatial-upscaler-x2-1.1.safetensors"
TEMPORAL = "ltx-2.3-temporal-upscaler-x2-1.0.safetensors"

HUGGING_FACE = "https://huggingface.co"
LORA_URL = f"{HUGGING_FACE}/Comfy-Org/ltx-2.3/resolve/main/split_files/loras/{LORA}"
GEMMA_URL = f"{HUGGING_FACE}/Comfy-Org/ltx-2/resolve/main/split_files/text_encoders/{TEXT_ENCODER}"
CHECKPOINT_URL = f"{HUGGING_FACE}/caiovicentino1/LTX-2.3-22B-HLWQ-Q5"

# The distilled model's own noise schedule, and the part of it that refines an upscaled latent.
SIGMAS_1 = "1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0"
SIGMAS_2 = "0.85, 0.725, 0.421875, 0.0"

# Every node type used; --signatures fetches these.
NODE_TYPES = (
    "CFGGuider", "CLIPTextEncode", "ComfyMathExpression", "EmptyLTXVLatentVideo", "HLWQLoadCheckpoint",
    "HLWQLoadTextEncoder", "HLWQLoadUpscaler", "HLWQSaveAudioVideo", "HLWQUpscaleLatent", "ImageScale",
    "KSamplerSelect", "LTXVAudioVAEDecode", "LTXVAudioVAEEncode", "LTXVConcatAVLatent", "LTXVConditioning",
    "LTXVEmptyLatentAudio",
    "LTXVImgToVideoInplace", "LTXVPreprocess", "LTXVSeparateAVLatent", "LoadAudio", "LoadImage", "LoraLoaderModelOnly",
    "ManualSigmas", "PrimitiveFloat", "PrimitiveInt", "RandomNoise", "SamplerCustomAdvanced", "SetLatentNoiseMask",
    "SolidMask", "TrimAudioDuration", "VAEDecodeTiled",
)  # fmt: skip

# What the two forms depend on in an input's options.
KEPT = ("control_after_generate", "image_upload", "audio_upload", "widgetType", "template", "default")

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


# ---- node signatures -------------------------------------------------------------------------------------------------


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
            elif options.get("image_upload"):
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


# ---- one description, two forms --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Out:
    node: Node
    slot: int


@dataclass(eq=False)
class Node:
    id: int
    type: str
    title: str | None
    inputs: dict[str, Any]
    signature: dict[str, Any]
    size: tuple[int, int]
    after: list[Any] = field(default_factory=list)  # values behind a seed or an upload widget
    models: list[dict[str, str]] = field(default_factory=list)
    color: tuple[str, str] | None = None
    pos: tuple[int, int] = (0, 0)

    def __getitem__(self, output: str) -> Out:
        return Out(self, self.signature["output_name"].index(output))

    def slots(self) -> list[Slot]:
        """Sockets first, then widgets: the order in which the frontend numbers inputs."""
        every = slots(self.signature)
        return [s for s in every if not s.widget] + [s for s in every if s.widget]


@dataclass
class Note:
    title: str
    text: str
    size: tuple[int, int]


class Workflow:
    """A graph described node by node; groups stand side by side, nodes stand one below the other in a group."""

    GAP, MARGIN, TITLE = 60, 30, 40

    def __init__(self, stem: str, name: str, signatures: dict[str, Any]):
        self.stem, self.name, self.signatures = stem, name, signatures
        self.nodes: list[Node] = []
        self.columns: list[list[tuple[str, str, list[Node | Note]]]] = []
        self._group: list[Node | Note] = []

    def column(self) -> None:
        self.columns.append([])

    def group(self, title: str, color: str = "#3f789e") -> None:
        self._group = []
        self.columns[-1].append((title, color, self._group))

    def add(
        self, type: str, title: str | None = None, *, wide: int = 320, lines: int = 0, after: list[Any] | None = None,
        models: list[dict[str, str]] | None = None, color: tuple[str, str] | None = None, **inputs: Any,
    ) -> Node:  # fmt: skip
        """A node; an input is a value or another node's output. `__` in an input's name stands for a dot."""
        signature = self.signatures[type]
        entries = slots(signature)
        given = {name.replace("__", "."): value for name, value in inputs.items()}
        if unknown := given.keys() - {s.name for s in entries}:
            raise KeyError(f"{type} has no input {sorted(unknown)}")
        values = {s.name: s.default for s in entries if s.widget} | given
        rows = max(sum(not s.widget for s in entries), len(signature["output"]))
        height = 50 + 24 * rows + sum(30 + 30 * (s.extra == 1) for s in entries if s.widget) + 20 * lines
        node = Node(
            len(self.nodes) + 1, type, title, values, signature, (wide, height), after or [], models or [], color
        )
        self.nodes.append(node)
        self._group.append(node)
        return node

    def note(self, title: str, text: str, size: tuple[int, int]) -> None:
        self._group.append(Note(title, text, size))

    # -- API form

    def api(self) -> dict[str, Any]:
        prompt = {}
        for node in self.nodes:
            inputs = {
                slot.name: [str(value.node.id), value.slot] if isinstance(value, Out) else value
                for slot in slots(node.signature)
                if (value := node.inputs.get(slot.name)) is not None
            }
            title = node.title or node.type
            prompt[str(node.id)] = {"inputs": inputs, "class_type": node.type, "_meta": {"title": title}}
        return prompt

    # -- canvas form

    def _place(self) -> tuple[list[dict[str, Any]], list[tuple[Note, tuple[int, int]]]]:
        groups, notes = [], []
        x = 0
        for column in self.columns:
            y, widest = 0, 0
            for title, color, members in column:
                width = max(m.size[0] for m in members)
                top, y = y, y + self.TITLE + 40
                for member in members:
                    at = (x + self.MARGIN, y)
                    if isinstance(member, Note):
                        notes.append((member, at))
                    else:
                        member.pos = at
                        member.size = (width, member.size[1])
                    y += member.size[1] + self.GAP
                bounds = [x, top, width + 2 * self.MARGIN, y - self.GAP + self.MARGIN - top]
                groups.append({"id": len(groups) + 1, "title": title, "bounding": bounds, "color": color, "flags": {}})
                y += self.MARGIN + 20
                widest = max(widest, width)
            x += widest + 2 * self.MARGIN + 40
        return groups, notes

    def _links(self) -> list[tuple[int, Node, int, Node, int, str]]:
        links = []
        for node in self.nodes:
            for index, slot in enumerate(node.slots()):
                value = node.inputs.get(slot.name)
                if isinstance(value, Out):
                    kind = value.node.signature["output"][value.slot]
                    links.append((len(links) + 1, value.node, value.slot, node, index, kind))
        return links

    def ui(self) -> dict[str, Any]:
        groups, notes = self._place()
        links = self._links()
        nodes = [self._ui_node(node, order, links) for order, node in enumerate(self.nodes)]
        for note, at in notes:
            nodes.append(
                {
                    "id": len(nodes) + 1,
                    "type": "MarkdownNote",
                    "title": note.title,
                    "pos": list(at),
                    "size": list(note.size),
                    "flags": {},
                    "order": len(nodes),
                    "mode": 0,
                    "inputs": [],
                    "outputs": [],
                    "properties": {},
                    "widgets_values": [note.text],
                    "color": NOTE_COLOR[0],
                    "bgcolor": NOTE_COLOR[1],
                }
            )
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"hlwq:{self.stem}")),
            "revision": 0,
            "last_node_id": len(nodes),
            "last_link_id": len(links),
            "nodes": nodes,
            "links": [[i, a.id, sa, b.id, sb, kind] for i, a, sa, b, sb, kind in links],
            "groups": groups,
            "config": {},
            "extra": {"ds": {"scale": 0.5, "offset": [120, 120]}, "frontendVersion": "1.47.12"},
            "version": 0.4,
        }

    def _ui_node(self, node: Node, order: int, links: list[tuple[int, Node, int, Node, int, str]]) -> dict[str, Any]:
        inputs = []
        for index, slot in enumerate(node.slots()):
            entry: dict[str, Any] = {"localized_name": slot.name, "name": slot.name, "type": slot.type}
            if slot.widget:
                entry["widget"] = {"name": slot.name}
            entry["link"] = next((i for i, _, _, b, sb, _ in links if b is node and sb == index), None)
            inputs.append(entry)
        outputs = [
            {
                "localized_name": name,
                "name": name,
                "type": kind,
                "links": [i for i, a, sa, *_ in links if a is node and sa == slot],
            }
            for slot, (name, kind) in enumerate(
                zip(node.signature["output_name"], node.signature["output"], strict=True)
            )
        ]
        ours = node.type.startswith("HLWQ")
        properties: dict[str, Any] = {
            "cnr_id": "comfyui-hlwq" if ours else "comfy-core",
            "Node name for S&R": node.type,
        }
        if node.models:
            properties["models"] = node.models
        entry = {
            "id": node.id,
            "type": node.type,
            "pos": list(node.pos),
            "size": list(node.size),
            "flags": {},
            "order": order,
            "mode": 0,
            "inputs": inputs,
            "outputs": outputs,
            "properties": properties,
            "widgets_values": self._widget_values(node),
        }
        if node.title:
            entry["title"] = node.title
        if node.color:
            entry["color"], entry["bgcolor"] = node.color
        return entry

    def _widget_values(self, node: Node) -> list[Any]:
        after = list(node.after)
        values: list[Any] = []
        for slot in slots(node.signature):
            if not slot.widget:
                continue
            value = node.inputs.get(slot.name)
            # A linked widget shows nothing of its own, but its place in the list has to be filled with its type.
            values.append(self._resting_value(slot, value.node) if isinstance(value, Out) else value)
            for _ in range(slot.extra):
                values.append(after.pop(0) if after else None)
        return values

    @staticmethod
    def _resting_value(slot: Slot, source: Node) -> Any:
        own = source.inputs.get("value")
        if own is not None and not isinstance(own, Out):
            return own
        return {"STRING": "", "BOOLEAN": False}.get(slot.type, 1)


# ---- the workflows ---------------------------------------------------------------------------------------------------

PROMPT = (
    "A ginger cat sits at an upright piano in a small jazz club and plays a slow tune. Its paws press the keys in time "
    "with the music. Warm lamps, smoke in the air, a double bass player out of focus behind. The camera moves slowly "
    "closer. "
    "Soft piano, brushed drums, quiet murmur of the audience."
)
PROMPT_IMAGE = (
    "The scene comes to life: the subject moves naturally, hair and clothes follow, light shifts softly. The camera "
    "moves slowly closer. Quiet sounds of the place."
)
PROMPT_AUDIO = (
    "A singer stands at a microphone on a small stage and sings with feeling, lips and breath following the voice. "
    "Warm light, dark background, steady camera at chest height."
)
NEGATIVE = "blurry, low quality, distorted, watermark, subtitles, static picture, noise, clipped sound"

WHERE = f"""## Which file goes where

- Load Checkpoint: the folder [{CHECKPOINT}]({CHECKPOINT_URL}) into **models/hlwq/**
- Load Text Encoder: [{TEXT_ENCODER}]({GEMMA_URL}) into **models/text_encoders/**
- Distilled LoRA: [{LORA}]({LORA_URL}) into **models/loras/**
"""
WHERE_UPSCALERS = """
The upscalers come with the checkpoint, in its folder **upscalers/**.
"""
# Dark enough in the dark theme and, lightened by the frontend, light enough in the light one for text and links.
NOTE_COLOR = ("#432", "#39390e")

MODEL_COLOR = ("#223", "#335")
INPUT_COLOR = ("#232", "#353")


@dataclass
class Base:
    """The nodes that the later parts of a graph connect to."""

    checkpoint: Node
    lora: Node
    width: Node
    height: Node
    length: Node
    rate: Node
    seed: Node
    conditioning: Node
    positive: Node
    negative: Node
    upscalers: dict[str, Node] = field(default_factory=dict)


def read_me(graph: Workflow, text: str, *, upscalers: bool = False, height: int = 520) -> None:
    graph.column()
    graph.group("Read me", "#a1309b")
    graph.note(graph.name, text.strip() + "\n\n" + WHERE + (WHERE_UPSCALERS if upscalers else ""), (560, height))


def models(graph: Workflow, kinds: dict[str, str]) -> tuple[Node, Node, Node, dict[str, Node]]:
    graph.column()
    graph.group("Models")
    # Seventeen lines: room for the report that web/hlwq.js puts under the widgets.
    checkpoint = graph.add(
        "HLWQLoadCheckpoint", "Load Checkpoint", wide=460, lines=17, checkpoint=CHECKPOINT, backend="auto",
        color=MODEL_COLOR,
    )  # fmt: skip
    lora = graph.add(
        "LoraLoaderModelOnly", "Distilled LoRA", model=checkpoint["MODEL"], lora_name=LORA, strength_model=0.5,
        models=[{"name": LORA, "url": LORA_URL, "directory": "loras"}], color=MODEL_COLOR,
    )  # fmt: skip
    encoder = graph.add(
        "HLWQLoadTextEncoder", "Load Text Encoder", text_encoder=TEXT_ENCODER, checkpoint=CHECKPOINT,
        models=[{"name": TEXT_ENCODER, "url": GEMMA_URL, "directory": "text_encoders"}], color=MODEL_COLOR,
    )  # fmt: skip
    loaders = {
        kind: graph.add("HLWQLoadUpscaler", f"{kind.capitalize()} upscaler", upscaler=file, color=MODEL_COLOR)
        for kind, file in kinds.items()
    }
    return checkpoint, lora, encoder, loaders


def opening(graph: Workflow, prompt: str, kinds: dict[str, str] | None = None) -> Base:
    """Models, size and prompts: what every workflow begins with."""
    checkpoint, lora, encoder, upscalers = models(graph, kinds or {})
    graph.column()
    graph.group("Size, length and seed")
    width = graph.add("PrimitiveInt", "Width", value=768, after=["fixed"], color=INPUT_COLOR)
    height = graph.add("PrimitiveInt", "Height", value=512, after=["fixed"], color=INPUT_COLOR)
    length = graph.add("PrimitiveInt", "Length", value=121, after=["fixed"], color=INPUT_COLOR)
    rate = graph.add("PrimitiveFloat", "Frame rate", value=24.0, color=INPUT_COLOR)
    seed = graph.add("RandomNoise", "Seed", noise_seed=42, after=["randomize"], color=INPUT_COLOR)
    graph.column()
    graph.group("Prompt")
    clip = encoder["CLIP"]
    positive = graph.add("CLIPTextEncode", "Prompt", wide=460, lines=10, clip=clip, text=prompt, color=INPUT_COLOR)
    negative = graph.add("CLIPTextEncode", "Negative prompt", lines=4, clip=clip, text=NEGATIVE, color=INPUT_COLOR)
    conditioning = graph.add(
        "LTXVConditioning",
        positive=positive["CONDITIONING"],
        negative=negative["CONDITIONING"],
        frame_rate=rate["FLOAT"],
    )
    return Base(
        checkpoint, lora, width, height, length, rate, seed, conditioning, positive, negative, upscalers
    )  # fmt: skip


def empty_latents(graph: Workflow, base: Base, *, half: bool = False) -> tuple[Out, Out]:
    """The empty video latent (at half the size if asked) and the empty audio latent."""
    width, height = base.width["INT"], base.height["INT"]
    graph.group("Empty latents")
    if half:
        width = graph.add("ComfyMathExpression", "Half the width", expression="a / 2", values__a=width)["INT"]
        height = graph.add("ComfyMathExpression", "Half the height", expression="a / 2", values__a=height)["INT"]
    video = graph.add("EmptyLTXVLatentVideo", width=width, height=height, length=base.length["INT"], batch_size=1)
    audio = graph.add(
        "LTXVEmptyLatentAudio", frames_number=base.length["INT"], frame_rate=base.rate["FLOAT"], batch_size=1,
        audio_vae=base.checkpoint["AUDIO VAE"],
    )  # fmt: skip
    return video["LATENT"], audio["Latent"]


def sample(graph: Workflow, base: Base, latent: Out, *, second: bool = False, conditioning: Node | None = None) -> Node:
    """A sampler and what feeds it: the distilled model's 8 steps, or the 3 that refine an upscaled latent."""
    conditioning = conditioning or base.conditioning
    suffix = ", stage 2" if second else ""
    noise = base.seed
    if second:
        noise = graph.add("RandomNoise", "Seed, stage 2", noise_seed=42, after=["fixed"])
    guider = graph.add(
        "CFGGuider",
        model=base.lora["MODEL"],
        positive=conditioning["positive"],
        negative=conditioning["negative"],
        cfg=1.0,
    )
    method = graph.add("KSamplerSelect", sampler_name="euler")
    sigmas = graph.add("ManualSigmas", f"Sigmas{suffix}", sigmas=SIGMAS_2 if second else SIGMAS_1, wide=460)
    return graph.add(
        "SamplerCustomAdvanced", f"Sampler{suffix}", noise=noise["NOISE"], guider=guider["GUIDER"],
        sampler=method["SAMPLER"], sigmas=sigmas["SIGMAS"], latent_image=latent,
    )  # fmt: skip


def closing(graph: Workflow, base: Base, latent: Out, rate: Out, *, audio: Out | None = None) -> Node:
    """Decode picture and sound, save both in one file. `audio` is saved as it is in place of the decoded one."""
    graph.group("Decode", "#88a06e")
    parts = graph.add("LTXVSeparateAVLatent", av_latent=latent)
    images = graph.add(
        "VAEDecodeTiled", samples=parts["video_latent"], vae=base.checkpoint["VAE"], tile_size=768, overlap=64,
        temporal_size=4096, temporal_overlap=4,
    )  # fmt: skip
    if audio is None:
        audio = graph.add("LTXVAudioVAEDecode", samples=parts["audio_latent"], audio_vae=base.checkpoint["AUDIO VAE"])[
            "Audio"
        ]
    graph.column()
    graph.group("Result", "#88a06e")
    return graph.add(
        "HLWQSaveAudioVideo", "Save", wide=560, lines=18, images=images["IMAGE"], audio=audio, frame_rate=rate,
        filename_prefix=f"video/{graph.stem}", codec="h264", quality="high", audio_codec="aac", color=INPUT_COLOR,
    )  # fmt: skip


def joint(graph: Workflow, video: Out, audio: Out) -> Out:
    return graph.add("LTXVConcatAVLatent", video_latent=video, audio_latent=audio)["latent"]


def text_to_video(signatures: dict[str, Any]) -> Workflow:
    graph = Workflow("hlwq_ltx23_text_to_video", "HLWQ LTX-2.3: text to video", signatures)
    read_me(
        graph,
        """
Picture and sound from a text, in one stage: 8 steps of the distilled LoRA.

- **Width** and **Height**: multiples of 32.
- **Length**: frames, 8 n + 1 (9, 17, … 121). At 24 frames a second 121 frames are 5 seconds.
- The sound is as long as the video; **Save** cuts or pads it to the frame.
- For a sharper picture at a larger size take the two-stage workflow.
""",
    )
    base = opening(graph, PROMPT)
    video, audio = empty_latents(graph, base)
    latent = joint(graph, video, audio)
    graph.column()
    graph.group("Sampling")
    result = sample(graph, base, latent)
    closing(graph, base, result["output"], base.rate["FLOAT"])
    return graph


def start_image(graph: Workflow, base: Base) -> Out:
    """The start image at the video's size, with the compression marks that the model was trained to move."""
    graph.column()
    graph.group("Start image")
    image = graph.add("LoadImage", "Start image", lines=14, image="example.png", after=["image"], color=INPUT_COLOR)
    scaled = graph.add(
        "ImageScale", image=image["IMAGE"], upscale_method="lanczos", width=base.width["INT"],
        height=base.height["INT"], crop="center",
    )  # fmt: skip
    return graph.add("LTXVPreprocess", image=scaled["IMAGE"], img_compression=18)["output_image"]


def begin_with(graph: Workflow, base: Base, image: Out, video: Out) -> Out:
    """A video latent whose first frame is the image; it brings the image to the latent's size itself."""
    begun = graph.add(
        "LTXVImgToVideoInplace", vae=base.checkpoint["VAE"], image=image, latent=video, strength=1.0, bypass=False
    )
    return begun["latent"]


def image_to_video(signatures: dict[str, Any]) -> Workflow:
    graph = Workflow("hlwq_ltx23_image_to_video", "HLWQ LTX-2.3: image to video", signatures)
    read_me(
        graph,
        """
A picture comes to life, with sound: the start image is the first frame.

- **Start image**: any size; the middle is cut to the format of **Width** × **Height** (multiples of 32).
- **Length**: frames, 8 n + 1.
- The prompt says what happens, not what is in the picture already.
- **strength** below 1 in *LTXVImgToVideoInplace* lets the first frame change a little.
""",
    )
    base = opening(graph, PROMPT_IMAGE)
    image = start_image(graph, base)
    video, audio = empty_latents(graph, base)
    latent = joint(graph, begin_with(graph, base, image, video), audio)
    graph.column()
    graph.group("Sampling")
    result = sample(graph, base, latent)
    closing(graph, base, result["output"], base.rate["FLOAT"])
    return graph


def two_stage(signatures: dict[str, Any]) -> Workflow:
    graph = Workflow("hlwq_ltx23_two_stage", "HLWQ LTX-2.3: two stages, spatial ×2", signatures)
    read_me(
        graph,
        """
Lightricks' way to a large picture: 8 steps at half the size, the spatial upscaler, 3 steps at full size.

- **Width** and **Height** are the result's: multiples of 64, because the first stage has half of them.
- **Length**: frames, 8 n + 1.
- The sound passes the upscaler untouched and is refined with the picture in the second stage.
""",
        upscalers=True,
        height=520,
    )
    return both_stages(graph, PROMPT)


def image_two_stage(signatures: dict[str, Any]) -> Workflow:
    graph = Workflow("hlwq_ltx23_image_to_video_two_stage", "HLWQ LTX-2.3: image to video, spatial ×2", signatures)
    read_me(
        graph,
        """
Lightricks' way from a picture to a large video: 8 steps at half the size, the spatial upscaler, 3 steps at full size.

- **Start image**: any size; the middle is cut to the format of **Width** × **Height**. It is set again after the upscaler.
- **Width** and **Height** are the result's: multiples of 64, because the first stage has half of them.
- **Length**: frames, 8 n + 1.
- The prompt says what happens, not what is in the picture already.
""",
        upscalers=True,
        height=560,
    )
    return both_stages(graph, PROMPT_IMAGE, with_image=True)


def both_stages(graph: Workflow, prompt: str, *, with_image: bool = False) -> Workflow:
    """Half the size, spatial ×2, refined; a start image becomes the first frame in both stages."""
    base = opening(graph, prompt, {"spatial": SPATIAL})
    base.width.inputs["value"], base.height.inputs["value"] = 1536, 1024
    image = start_image(graph, base) if with_image else None
    video, audio = empty_latents(graph, base, half=True)
    if image is not None:
        video = begin_with(graph, base, image, video)
    latent = joint(graph, video, audio)
    graph.column()
    graph.group("Stage 1: half the size")
    first = sample(graph, base, latent)
    graph.group("Spatial ×2", "#b58b2a")
    larger = graph.add(
        "HLWQUpscaleLatent", latent=first["output"], vae=base.checkpoint["VAE"], mode="spatial",
        frame_rate=base.rate["FLOAT"], spatial_upscaler=base.upscalers["spatial"]["LATENT_UPSCALE_MODEL"],
    )  # fmt: skip
    latent = larger["latent"]
    if image is not None:
        parts = graph.add("LTXVSeparateAVLatent", av_latent=latent)
        latent = joint(graph, begin_with(graph, base, image, parts["video_latent"]), parts["audio_latent"])
    graph.column()
    graph.group("Stage 2: refine")
    second = sample(graph, base, latent, second=True)
    closing(graph, base, second["output"], larger["frame_rate"])
    return graph


def temporal_upscale(signatures: dict[str, Any]) -> Workflow:
    graph = Workflow("hlwq_ltx23_temporal_upscale", "HLWQ LTX-2.3: twice the frame rate", signatures)
    read_me(
        graph,
        """
Smooth motion: 8 steps at **Frame rate**, the temporal upscaler, 3 steps at twice the frame rate.

- **Length** frames become 2 × Length − 1, **Frame rate** becomes twice as much: the video lasts as long as before,
  and the sound stays in time. 121 frames at 24 become 241 at 48.
- Everything behind the upscaler takes the frame rate that **Upscale Latent** hands on.
- To double the size as well, add the spatial upscaler and set the mode to *both*.
""",
        upscalers=True,
        height=600,
    )
    base = opening(graph, PROMPT, {"temporal": TEMPORAL})
    video, audio = empty_latents(graph, base)
    latent = joint(graph, video, audio)
    graph.column()
    graph.group("Stage 1")
    first = sample(graph, base, latent)
    graph.group("Temporal ×2", "#b58b2a")
    longer = graph.add(
        "HLWQUpscaleLatent", latent=first["output"], vae=base.checkpoint["VAE"], mode="temporal",
        frame_rate=base.rate["FLOAT"], temporal_upscaler=base.upscalers["temporal"]["LATENT_UPSCALE_MODEL"],
    )  # fmt: skip
    doubled = graph.add(
        "LTXVConditioning", positive=base.positive["CONDITIONING"], negative=base.negative["CONDITIONING"],
        frame_rate=longer["frame_rate"],
    )  # fmt: skip
    graph.column()
    graph.group("Stage 2: refine")
    second = sample(graph, base, longer["latent"], second=True, conditioning=doubled)
    closing(graph, base, second["output"], longer["frame_rate"])
    return graph


def audio_to_video(signatures: dict[str, Any]) -> Workflow:
    graph = Workflow("hlwq_ltx23_audio_to_video", "HLWQ LTX-2.3: audio to video", signatures)
    read_me(
        graph,
        """
A picture that follows a sound: speech, a song, a noise.

- **Audio**: your file. **Trim** chooses where to begin; its length follows from **Length** and **Frame rate**.
- The sound's latent is kept as it is (noise mask 0) while the picture is made.
- The file gets the sound that you gave, not its decoded copy. A sound that is too short ends in silence.
- The prompt describes who is heard and what is seen.
""",
    )
    base = opening(graph, PROMPT_AUDIO)
    graph.column()
    graph.group("Audio")
    sound = graph.add("LoadAudio", "Audio", lines=3, audio="audio.wav", color=INPUT_COLOR)
    seconds = graph.add(
        "ComfyMathExpression", "Seconds", expression="a / b", values__a=base.length["INT"], values__b=base.rate["FLOAT"]
    )
    trimmed = graph.add("TrimAudioDuration", "Trim", audio=sound["AUDIO"], start_index=0.0, duration=seconds["FLOAT"])
    encoded = graph.add("LTXVAudioVAEEncode", audio=trimmed["AUDIO"], audio_vae=base.checkpoint["AUDIO VAE"])
    keep = graph.add("SolidMask", "Keep the sound", value=0.0, width=64, height=64)
    audio = graph.add("SetLatentNoiseMask", samples=encoded["Audio Latent"], mask=keep["MASK"])
    graph.column()
    graph.group("Empty latent")
    video = graph.add(
        "EmptyLTXVLatentVideo",
        width=base.width["INT"],
        height=base.height["INT"],
        length=base.length["INT"],
        batch_size=1,
    )
    latent = joint(graph, video["LATENT"], audio["LATENT"])
    graph.group("Sampling")
    result = sample(graph, base, latent)
    closing(graph, base, result["output"], base.rate["FLOAT"], audio=trimmed["AUDIO"])
    return graph


WORKFLOWS = (text_to_video, image_to_video, two_stage, image_two_stage, temporal_upscale, audio_to_video)


# ---- blueprints: a workflow as one node ------------------------------------------------------------------------------

# Label, and the widgets that it sets: (title, input).
EXPOSED = (
    ("prompt", [("Prompt", "text")]),
    ("width", [("Width", "value")]),
    ("height", [("Height", "value")]),
    ("length", [("Length", "value")]),
    ("frame rate", [("Frame rate", "value")]),
    ("seed", [("Seed", "noise_seed")]),
    ("checkpoint", [("Load Checkpoint", "checkpoint"), ("Load Text Encoder", "checkpoint")]),
    ("text encoder", [("Load Text Encoder", "text_encoder")]),
    ("distilled LoRA", [("Distilled LoRA", "lora_name")]),
    ("filename prefix", [("Save", "filename_prefix")]),
)


def blueprint(graph: Workflow, name: str, description: str) -> dict[str, Any]:
    """The workflow as a subgraph with its important widgets outside; a start image becomes a socket."""
    canvas = graph.ui()
    nodes = [n for n in canvas["nodes"] if n["type"] not in ("MarkdownNote", "LoadImage")]
    by_title = {n.get("title"): n for n in nodes}
    image = next((n for n in canvas["nodes"] if n["type"] == "LoadImage"), None)
    links = []
    inputs: list[dict[str, Any]] = []

    def entrance(label: str, kind: str, links_in: list[int]) -> None:
        key = label.replace(" ", "_")
        ident = str(uuid.uuid5(uuid.NAMESPACE_URL, f"hlwq:{name}:{label}"))
        at = [-220, 60 + 20 * len(inputs)]
        inputs.append({"id": ident, "name": key, "type": kind, "linkIds": links_in, "label": label, "pos": at})

    for number, start, slot, end, socket, kind in canvas["links"]:
        if image is not None and start == image["id"]:
            entrance("start image", kind, [number])
            start, slot = -10, len(inputs) - 1
        links.append((number, start, slot, end, socket, kind))
    last = canvas["last_link_id"]
    proxies, outer = [], []
    for label, targets in EXPOSED:
        numbers = []
        for title, widget in targets:
            last += 1
            node = by_title[title]
            socket, entry = next((k, e) for k, e in enumerate(node["inputs"]) if e["name"] == widget)
            entry["link"] = last
            numbers.append(last)
            links.append((last, -10, len(inputs), node["id"], socket, entry["type"]))
        entrance(label, entry["type"], numbers)
        proxies.append([str(by_title[targets[0][0]]["id"]), targets[0][1]])
        key = inputs[-1]["name"]
        outer.append({"label": label, "name": key, "type": entry["type"], "widget": {"name": key}, "link": None})
    save = by_title["Save"]
    last += 1
    save["outputs"][0]["links"] = [last]
    links.append((last, save["id"], 0, -20, 0, "VIDEO"))
    if image is not None:
        socket = {"label": "start image", "name": "start_image", "type": "IMAGE", "link": None}
        outer.insert(0, socket)
    ident = str(uuid.uuid5(uuid.NAMESPACE_URL, f"hlwq:{name}"))
    groups = [g for g in canvas["groups"] if g["title"] != "Read me"]
    right = max(g["bounding"][0] + g["bounding"][2] for g in groups)
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    video = {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"hlwq:{name}:video")), "name": "video", "type": "VIDEO",
        "linkIds": [last], "localized_name": "video", "pos": [right + 100, 80],
    }  # fmt: skip
    subgraph = {
        "id": ident,
        "version": 1,
        "state": {
            "lastGroupId": len(canvas["groups"]),
            "lastNodeId": canvas["last_node_id"],
            "lastLinkId": last,
            "lastRerouteId": 0,
        },
        "revision": 0,
        "config": {},
        "name": name,
        "inputNode": {"id": -10, "bounding": [-340, 40, 140, 20 * len(inputs) + 40]},
        "outputNode": {"id": -20, "bounding": [right + 80, 40, 120, 60]},
        "inputs": inputs,
        "outputs": [video],
        "widgets": [],
        "nodes": nodes,
        "groups": groups,
        "links": [dict(zip(keys, link)) for link in links],
        "extra": {},
        "category": "HLWQ",
        "description": description,
    }
    node = {
        "id": 1,
        "type": ident,
        "pos": [0, 0],
        "size": [420, 460],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": outer,
        "outputs": [{"localized_name": "video", "name": "video", "type": "VIDEO", "links": []}],
        "title": name,
        "properties": {"proxyWidgets": proxies, "cnr_id": "comfyui-hlwq"},
        "widgets_values": [],
    }
    return {
        "revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [node], "links": [], "version": 0.4,
        "definitions": {"subgraphs": [subgraph]}, "extra": {},
    }  # fmt: skip


BLUEPRINTS = (
    (
        text_to_video,
        "HLWQ LTX-2.3 text to video",
        "Picture and sound from a text with a packed LTX-2.3, saved as one MP4.",
    ),
    (image_to_video, "HLWQ LTX-2.3 image to video", "A picture comes to life, with sound, with a packed LTX-2.3."),
)


# ---- thumbnails ------------------------------------------------------------------------------------------------------

# Input, what happens in between, frames drawn, their height in pixels.
PICTURES = {
    "hlwq_ltx23_text_to_video": ("text", "8 steps", 4, 110),
    "hlwq_ltx23_image_to_video": ("image", "8 steps", 4, 110),
    "hlwq_ltx23_two_stage": ("text", "8 steps, spatial x2, 3 steps", 3, 170),
    "hlwq_ltx23_image_to_video_two_stage": ("image", "8 steps, spatial x2, 3 steps", 3, 170),
    "hlwq_ltx23_temporal_upscale": ("text", "8 steps, temporal x2, 3 steps", 8, 110),
    "hlwq_ltx23_audio_to_video": ("sound", "8 steps", 4, 110),
}


def thumbnail(path: Path, title: str, source: str, between: str, frames: int, height: int) -> None:
    """A diagram of the workflow: what goes in, what happens, film and sound that come out."""
    from PIL import Image, ImageDraw, ImageFont

    size = (768, 432)
    image = Image.new("RGB", size, "#14161f")
    draw = ImageDraw.Draw(image)
    font = {n: ImageFont.load_default(n) for n in (20, 24, 34)}
    draw.text((36, 28), title.removeprefix("HLWQ ").replace("×", "x"), font=font[34], fill="#f2efe6")
    draw.text((36, 76), f"HLWQ: packed weights; {between}", font=font[20], fill="#9aa3b8")

    def waves(box: tuple[int, int, int, int], color: str) -> None:
        left, top, right, bottom = box
        middle = (top + bottom) / 2
        for x in range(left, right, 6):
            part = (x - left) / (right - left)
            swing = (bottom - top) / 2 * abs(math.sin(9 * part) * math.cos(23 * part)) * (0.4 + 0.6 * part) + 2
            draw.line((x, middle - swing, x, middle + swing), fill=color, width=3)

    def scene(box: tuple[int, int, int, int], part: float) -> None:
        left, top, right, bottom = box
        for y in range(top, bottom):
            t = (y - top) / (bottom - top)
            draw.line((left, y, right, y), fill=(int(40 + 150 * t), int(50 + 60 * t), int(110 - 40 * t)))
        x, y = (
            left + (right - left) * (0.2 + 0.6 * part),
            bottom - (bottom - top) * (0.3 + 0.4 * math.sin(math.pi * part)),
        )
        radius = min((bottom - top) * 0.13, (right - left) * 0.19)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill="#ffd27a")
        draw.rectangle(box, outline="#f2efe6", width=2)

    box = (36, 170, 216, 290)
    if source == "image":
        scene(box, 0.0)
    elif source == "sound":
        waves(box, "#7ac7ff")
    else:
        for line, length in enumerate((170, 150, 175, 120, 90)):
            draw.rounded_rectangle((36, 176 + 24 * line, 36 + length, 188 + 24 * line), 6, fill="#5f6b85")
    draw.line((236, 230, 280, 230), fill="#f2efe6", width=4)
    draw.polygon(((280, 220), (300, 230), (280, 240)), fill="#f2efe6")
    gap, left, right = 8, 320, 736
    width = (right - left - gap * (frames - 1)) // frames
    top = 225 - height // 2
    for k in range(frames):
        x = left + k * (width + gap)
        scene((x, top, x + width, top + height), k / (frames - 1))
    waves((left, 330, right, 395), "#7ac7ff")
    image.save(path, "JPEG", quality=85, optimize=True)


def write(root: Path) -> list[Path]:
    """Write all files under `root`; returns their paths."""
    signatures = json.loads(SIGNATURES.read_text(encoding="utf-8"))
    written = []

    def dump(path: Path, value: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        written.append(path)

    for build in WORKFLOWS:
        graph = build(signatures)
        dump(root / "workflows" / f"{graph.stem}.json", graph.ui())
        dump(root / "workflows" / "api" / f"{graph.stem}.json", graph.api())
        picture = root / "workflows" / f"{graph.stem}.jpg"
        thumbnail(picture, graph.name, *PICTURES[graph.stem])
        written.append(picture)
    for build, name, description in BLUEPRINTS:
        dump(root / "subgraphs" / f"{name}.json", blueprint(build(signatures), name, description))
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--signatures", metavar="URL", help="take the node signatures from this ComfyUI first")
    args = parser.parse_args()
    if args.signatures:
        excerpt = fetch_signatures(args.signatures, NODE_TYPES)
        SIGNATURES.write_text(json.dumps(excerpt, indent=1) + "\n", encoding="utf-8")
    write(ROOT)


if __name__ == "__main__":
    main()
