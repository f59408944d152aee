"""The shipped workflow files: both forms agree, links hold, nothing overlaps, everything is documented."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from ..canvas_to_api import convert

ROOT = Path(__file__).resolve().parents[2]
CANVAS = sorted((ROOT / "workflows").glob("*.json"))
API = sorted((ROOT / "workflows" / "api").glob("*.json"))
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
SIGNATURES = json.loads((ROOT / "scripts" / "node_signatures.json").read_text("utf-8"))
STEMS = {
    "hlwq_ltx23_text_to_video",
    "hlwq_ltx23_image_to_video",
    "hlwq_ltx23_two_stage",
    "hlwq_ltx23_image_to_video_two_stage",
    "hlwq_ltx23_temporal_upscale",
    "hlwq_ltx23_audio_to_video",
    "hlwq_ltx23_extend",
    "hlwq_ltx23_long_video",
    "hlwq_ltx25_text_to_video",
    "hlwq_ltx25_image_to_video",
}
# The folders of models/ that a workflow's files go into.
FOLDERS = {
    "ltx23": ["hlwq", "text_encoders", "loras"],
    "ltx25": ["diffusion_models", "text_encoders", "vae", "latent_upscale_models"],
}


def read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def stem(path: Path) -> str:
    return path.stem


def version(path: Path) -> str:
    return path.stem.split("_")[1]


def graphs() -> list:
    """Every graph with nodes and links: the workflows, and the insides of the blueprints."""
    result = [pytest.param(read(p), id=p.stem) for p in CANVAS]
    result += [pytest.param(read(p)["definitions"]["subgraphs"][0], id=p.stem) for p in BLUEPRINTS]
    return result


def links_of(graph: dict) -> list[tuple]:
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return [tuple(link[k] for k in keys) if isinstance(link, dict) else tuple(link) for link in graph["links"]]


def test_every_workflow_is_there_in_both_forms():
    assert {p.stem for p in CANVAS} == {p.stem for p in API} == STEMS
    assert {p.stem for p in BLUEPRINTS} == {"HLWQ LTX-2.3 text to video", "HLWQ LTX-2.3 image to video"}


@pytest.mark.parametrize("path", CANVAS, ids=stem)
def test_both_forms_agree(path):
    """Converted by code that shares nothing with the generator."""
    assert convert(read(path), SIGNATURES) == read(ROOT / "workflows" / "api" / path.name)


def test_files_are_what_the_script_writes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    spec = importlib.util.spec_from_file_location("make_workflows", ROOT / "scripts" / "make_workflows.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "make_workflows", module)
    spec.loader.exec_module(module)
    written = module.write(tmp_path)
    for path in written:
        if path.suffix == ".json":
            where = path.relative_to(tmp_path)
            assert read(path) == read(ROOT / where), f"{where}: run scripts/make_workflows.py"


@pytest.mark.parametrize("graph", graphs())
def test_links_hold(graph):
    nodes = {n["id"]: n for n in graph["nodes"]}
    links = links_of(graph)
    assert len({link[0] for link in links}) == len(links)
    for number, start, slot, end, socket, kind in links:
        if start in nodes:
            output = nodes[start]["outputs"][slot]
            assert number in output["links"]
            assert output["type"] == kind
        if end in nodes:
            entry = nodes[end]["inputs"][socket]
            assert entry["link"] == number
            accepted = entry["type"].split(",")
            assert kind in accepted or "*" in accepted, f"{nodes[end]['type']}.{entry['name']} takes no {kind}"
    linked = {number for number, *_ in links}
    for node in graph["nodes"]:
        for entry in node["inputs"]:
            assert entry["link"] is None or entry["link"] in linked


@pytest.mark.parametrize("graph", graphs())
def test_sockets_are_connected(graph):
    for node in graph["nodes"]:
        if node["type"] not in SIGNATURES:
            continue
        required = SIGNATURES[node["type"]]["input"]["required"]
        for entry in node["inputs"]:
            if entry["name"] in required and "widget" not in entry:
                assert entry["link"] is not None, f"{node['type']}.{entry['name']} is not connected"


@pytest.mark.parametrize("graph", graphs())
def test_nothing_overlaps(graph):
    title_bar = 30
    boxes = [
        (n["pos"][0], n["pos"][1] - title_bar, n["pos"][0] + n["size"][0], n["pos"][1] + n["size"][1], n["id"])
        for n in graph["nodes"]
    ]
    for a, b in itertools.combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], f"nodes {a[4]} and {b[4]} overlap"
    groups = [g["bounding"] for g in graph["groups"]]
    for a, b in itertools.combinations(groups, 2):
        apart = a[0] + a[2] <= b[0] or b[0] + b[2] <= a[0] or a[1] + a[3] <= b[1] or b[1] + b[3] <= a[1]
        assert apart, f"groups overlap: {a} {b}"
    for left, top, right, bottom, number in boxes:
        inside = any(
            g[0] <= left and right <= g[0] + g[2] and g[1] <= top and bottom <= g[1] + g[3] for g in groups
        )  # fmt: skip
        assert inside, f"node {number} stands in no group"


@pytest.mark.parametrize("path", CANVAS, ids=stem)
def test_note_says_which_file_goes_where(path):
    workflow = read(path)
    (note,) = [n for n in workflow["nodes"] if n["type"] == "MarkdownNote"]
    text = note["widgets_values"][0]
    for folder in FOLDERS[version(path)]:
        assert f"models/{folder}/" in text
    widgets = [v for n in workflow["nodes"] for v in n.get("widgets_values", []) if isinstance(v, str)]
    files = {v for v in widgets if v.endswith(".safetensors")}
    if version(path) == "ltx23":  # its upscalers come with the checkpoint, which is a folder
        assert ("upscalers/" in text) == any("upscaler" in n.get("title", "") for n in workflow["nodes"])
        files = {file for file in files if "upscaler" not in file}
    assert len(files) == {"ltx23": 2, "ltx25": 5}[version(path)]
    for file in files:
        assert file in text


@pytest.mark.parametrize("path", CANVAS, ids=stem)
def test_model_links_name_the_widget_and_the_folder(path):
    found = 0
    for node in read(path)["nodes"]:
        for model in node["properties"].get("models", []):
            found += 1
            assert model["name"] in node["widgets_values"]
            assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith(model["name"])
            assert model["directory"] in FOLDERS[version(path)]
    assert found == {"ltx23": 2, "ltx25": 4}[version(path)]


@pytest.mark.parametrize("path", API, ids=stem)
def test_titles_are_documented_and_unique(path):
    documented = set()
    for line in (ROOT / "workflows" / "README.md").read_text("utf-8").splitlines():
        if line.startswith("| `") and not line.startswith("| `hlwq"):
            documented |= set(re.findall(r"`([^`]+)`", line.split("|")[1]))
    nodes = read(path).values()
    settable = [n["_meta"]["title"] for n in nodes if n["_meta"]["title"] != n["class_type"]]
    assert len(settable) == len(set(settable))
    inner = {
        "Half the width",
        "Half the height",
        "Seconds",
        "From the end",
        "Keep the sound",
        "Sampler",
        "Sampler, stage 2",
    }
    assert set(settable) - inner <= documented
    loader = {"ltx23": "Load Checkpoint", "ltx25": "Load Diffusion Model"}[version(path)]
    assert {"Prompt", loader, "Width", "Height", "Length", "Frame rate", "Seed", "Save"} <= set(settable)


@pytest.mark.parametrize("path", CANVAS, ids=stem)
def test_thumbnail(path):
    thumbnail = path.with_suffix(".jpg")
    assert thumbnail.stat().st_size <= 60_000
    with Image.open(thumbnail) as image:
        assert image.format == "WEBP" and image.n_frames > 8 and image.width >= 400
        image.verify()


@pytest.mark.parametrize("path", CANVAS, ids=stem)
def test_app_mode(path):
    """What a person sets is asked for, by the name of its node, and the video is shown."""
    workflow = read(path)
    nodes = {str(node["id"]): node for node in workflow["nodes"]}
    asked = workflow["extra"]["linearData"]["inputs"]
    assert {"Prompt", "Width", "Height", "Length", "Seed"} <= {nodes[number]["title"] for number, _ in asked}
    for number, widget in asked:
        (entry,) = (entry for entry in nodes[number]["inputs"] if entry.get("widget", {}).get("name") == widget)
        assert entry["label"] == nodes[number]["title"] and entry["link"] is None
    files = [node for node in workflow["nodes"] if node["type"] in ("LoadImage", "LoadAudio", "LoadVideo")]
    assert {str(node["id"]) for node in files} <= {number for number, _ in asked}
    assert [nodes[number]["title"] for number in workflow["extra"]["linearData"]["outputs"]] == ["Save"]


@pytest.mark.parametrize("path", BLUEPRINTS, ids=stem)
def test_blueprint_is_one_node(path):
    blueprint = read(path)
    (node,) = blueprint["nodes"]
    (inner,) = blueprint["definitions"]["subgraphs"]
    assert node["type"] == inner["id"]
    assert inner["name"] == path.stem
    assert [o["type"] for o in inner["outputs"]] == [o["type"] for o in node["outputs"]] == ["VIDEO"]
    names = {n["id"]: n for n in inner["nodes"]}
    for number, widget in node["properties"]["proxyWidgets"]:
        assert widget in {i["name"] for i in names[int(number)]["inputs"] if "widget" in i}
    prompt = convert(blueprint, SIGNATURES)
    assert {n["class_type"] for n in prompt.values()} >= {"HLWQLoadCheckpoint", "HLWQDecodeSave"}
