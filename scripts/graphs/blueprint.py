"""A workflow as one node: a subgraph with its important widgets outside."""

from __future__ import annotations

import uuid
from typing import Any

from .shipped import image_to_video, text_to_video
from .workflow import Workflow

# Label, and the widgets that it sets: (title, input).
EXPOSED = (
    ("Prompt", [("Prompt", "text")]),
    ("Width", [("Width", "value")]),
    ("Height", [("Height", "value")]),
    ("Length", [("Length", "value")]),
    ("Frame rate", [("Frame rate", "value")]),
    ("Seed", [("Seed", "noise_seed")]),
    ("Checkpoint", [("Load Checkpoint", "checkpoint"), ("Load Text Encoder", "checkpoint")]),
    ("Text encoder", [("Load Text Encoder", "text_encoder")]),
    ("Distilled LoRA", [("Distilled LoRA", "lora_name")]),
    ("File name", [("Save", "filename_prefix")]),
)

# The inputs' names, which workflows keep; others are the labels in small letters.
KEYS = {"Distilled LoRA": "distilled_LoRA", "File name": "filename_prefix"}


def blueprint(graph: Workflow, name: str, description: str) -> dict[str, Any]:
    """The workflow as a subgraph with its important widgets outside; a start image becomes a socket."""
    canvas = graph.ui()
    nodes = [n for n in canvas["nodes"] if n["type"] not in ("MarkdownNote", "LoadImage")]
    by_title = {n.get("title"): n for n in nodes}
    image = next((n for n in canvas["nodes"] if n["type"] == "LoadImage"), None)
    links = []
    inputs: list[dict[str, Any]] = []

    def entrance(label: str, kind: str, links_in: list[int]) -> None:
        key = KEYS.get(label, label.lower().replace(" ", "_"))
        ident = str(uuid.uuid5(uuid.NAMESPACE_URL, f"hlwq:{name}:{label}"))
        at = [-220, 60 + 20 * len(inputs)]
        inputs.append({"id": ident, "name": key, "type": kind, "linkIds": links_in, "label": label, "pos": at})

    for number, start, slot, end, socket, kind in canvas["links"]:
        if image is not None and start == image["id"]:
            entrance("Start image", kind, [number])
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
        socket = {"label": "Start image", "name": "start_image", "type": "IMAGE", "link": None}
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
