"""Sizes, lengths and schedules that LTX does not take: refused before anything runs, with a value that it takes."""

from __future__ import annotations

import copy
import json
import wave
from pathlib import Path
from typing import Any

import pytest

from hlwq_core import cli
from hlwq_core.client import graph, grid
from hlwq_core.client.generate import Request, build
from hlwq_core.errors import InputError

WORKFLOWS = sorted(graph.SHIPPED.glob("*.json"))


def workflow(name: str) -> graph.Nodes:
    return graph.load(graph.SHIPPED / f"hlwq_ltx23_{name}.json")


@pytest.mark.parametrize("value", [-(10**30), -64, -20, -1, 0, 1, 31, 33, 700, 16383, 16385, 10**30])
@pytest.mark.parametrize(("step", "offset"), [(32, 0), (64, 0), (8, 1)])
def test_the_nearest_values_are_valid(value: int, step: int, offset: int) -> None:
    found = grid.nearest(value, step, offset, least=step if offset == 0 else 1)
    assert found and all(v % step == offset and 1 <= v <= grid.LARGEST for v in found)
    every = range(offset or step, grid.LARGEST + 1, step)
    assert abs(found[0] - value) == min(abs(v - value) for v in every)


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        ({"width": -64}, "--width 32"),
        ({"height": 0}, "--height 32"),
        ({"width": 10**12}, "--width 16384"),
        ({"frames": -20}, "--frames 1"),
        ({"frames": 10**12}, "--frames 16377"),
        ({"frames": 120}, "--frames 121"),
        ({"seconds": float("inf")}, "--seconds 5"),
        ({"seconds": float("nan")}, "--seconds 5"),
        ({"seconds": -1}, "--seconds 5"),
        ({"seconds": 1e9}, "--seconds 682"),
        ({"fps": float("nan")}, "--fps 24"),
        ({"fps": 0}, "--fps 24"),
        ({"steps": 0}, "--steps 8"),
        ({"steps": -3}, "--steps 8"),
        ({"steps": 10**9}, "--steps 8"),
        ({"seed": -1}, "--seed 42"),
        ({"seed": 2**64}, "--seed 42"),
        ({"loras": [("a", float("nan"))]}, "--lora a:1"),
        ({"loras": [("a", float("inf"))]}, "--lora a:1"),
        ({"width": 736, "upscale": "spatial"}, "--width 704"),
        ({"settings": ["Width.value=700"]}, "--width 704"),
        ({"settings": ["Length.value=120"]}, "--frames 121"),
        ({"settings": ["EmptyLTXVLatentVideo.width=700"]}, '--set "EmptyLTXVLatentVideo.width=704"'),
        ({"settings": ["Sigmas.sigmas=0.5"]}, '--set "Sigmas.sigmas='),
        ({"settings": ["Sigmas.sigmas="]}, '--set "Sigmas.sigmas='),
        ({"settings": ["Sigmas.sigmas=none"]}, '--set "Sigmas.sigmas='),
    ],
)
def test_what_cannot_be_made_is_refused_with_what_can(options: dict[str, Any], fix: str) -> None:
    with pytest.raises(InputError) as caught:
        build(Request(prompt="x", **options))
    assert fix in (caught.value.fix or ""), caught.value


def sound(path: Path, seconds: float, rate: int = 16000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(bytes(2 * round(seconds * rate)))
    return path


@pytest.mark.parametrize("seconds", [0.0001, 0.01, 0.05, 0.09])
def test_a_sound_that_is_too_short(tmp_path: Path, seconds: float) -> None:
    """Core's audio VAE makes nothing of it, and says so when everything is loaded."""
    with pytest.raises(InputError, match="too short") as caught:
        build(Request(prompt="x", audio=sound(tmp_path / "short.wav", seconds)))
    assert caught.value.expected == "at least 0.1 s"


@pytest.mark.parametrize(("frames", "fps", "fix"), [(1, 24.0, "--frames 9"), (17, 240.0, "--frames 25")])
def test_a_sound_that_is_cut_too_short(tmp_path: Path, frames: int, fps: float, fix: str) -> None:
    with pytest.raises(InputError) as caught:
        build(Request(prompt="x", audio=sound(tmp_path / "a.wav", 1.0), frames=frames, fps=fps))
    assert caught.value.fix == fix
    build(Request(prompt="x", audio=sound(tmp_path / "a.wav", 0.1), frames=int(fix.split()[1]), fps=fps))


@pytest.mark.parametrize("sigmas", ["1.0", "", "much then little", "0, 0"])
def test_steps_of_a_schedule_that_has_none(tmp_path: Path, sigmas: str) -> None:
    """A workflow of the user's own."""
    nodes = workflow("text_to_video")
    nodes[str(graph.find(nodes, "Sigmas"))]["inputs"]["sigmas"] = sigmas
    (tmp_path / "own.json").write_text(json.dumps(nodes))
    with pytest.raises(InputError, match="no steps"):
        build(Request(steps=4, workflow=tmp_path / "own.json"))


def test_a_schedule_is_read_as_core_reads_it() -> None:
    assert grid.points_of("1.0 0.5; 0") == [1.0, 0.5, 0.0]
    assert grid.resample("1 0.5 0", 4) == "1, 0.75, 0.5, 0.25, 0.0"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_shipped_workflows_pass(path: Path) -> None:
    nodes = graph.load(path)
    grid.check(nodes, options=False)
    step = 64 if "two_stage" in path.stem or "ltx25" in path.stem else 32
    for title, wrong, right in (("Width", 2 * step + 1, 2 * step), ("Height", -5, step), ("Length", 100, 97)):
        changed = copy.deepcopy(nodes)
        graph.put(changed, title, "value", wrong)
        with pytest.raises(InputError) as caught:
            grid.check(changed, options=False)
        assert caught.value.fix == f'--set "{title}.value={right}"'


def test_what_comes_from_elsewhere_is_let_through() -> None:
    """Another node's number, a circle, a sum, an input that is not there: the server judges."""
    nodes = workflow("text_to_video")
    latent = nodes[str(graph.find(nodes, "EmptyLTXVLatentVideo"))]["inputs"]
    width = str(graph.find(nodes, "Width"))
    nodes["90"] = {"class_type": "GetImageSize", "inputs": {}}
    nodes["91"] = {"class_type": "ComfyMathExpression", "inputs": {"expression": "a + 1", "values.a": [width, 0]}}
    nodes["92"] = {"class_type": "PrimitiveInt", "inputs": {"value": ["92", 0]}}
    nodes["93"] = {"class_type": "ComfyMathExpression", "inputs": {"expression": "a / 0", "values.a": [width, 0]}}
    for source in ("90", "91", "92", "93", "nobody"):
        latent["width"] = [source, 0]
        grid.check(nodes, options=True)
    del latent["width"]
    grid.check(nodes, options=True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "Width.value=700"], '--set "Width.value=704"'),
        (["--set", "Height.value=-64"], '--set "Height.value=32"'),
        (["--set", "Length.value=120"], '--set "Length.value=121"'),
        (["--set", "EmptyLTXVLatentVideo.length=-8"], '--set "EmptyLTXVLatentVideo.length=1"'),
        (["--set", "Width.value=wide"], "a whole number"),
        (["--set", "Nothing.value=1"], "names no node"),
        (["--count", "0"], "--count 1"),
        (["--output", "/nowhere/x.mp4"], "does not exist"),
    ],
)
def test_queue_refuses_before_there_is_a_server(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hlwq_core.batch import pool

    monkeypatch.setattr(pool, "LocalServer", lambda *a, **k: pytest.fail("ComfyUI was started"))
    monkeypatch.setattr(pool.comfyui, "program", lambda *a: pytest.fail("ComfyUI was looked for"))
    assert cli.main(["queue", str(WORKFLOWS[0]), *arguments]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--width", "-64"], ["--frames", "-20"], ["--set", "Width.value=700"]])
def test_generate_refuses_before_there_is_a_server(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hlwq_core.batch import pool

    monkeypatch.setattr(pool.comfyui, "program", lambda *a: pytest.fail("ComfyUI was looked for"))
    assert cli.main(["generate", "--prompt", "x", *arguments]) == 2
    assert "what to do: --" in capsys.readouterr().err


@pytest.mark.parametrize("meta", [None, 5, "x", {}, {"title": None}, {"title": 7}])
def test_a_title_of_any_form(tmp_path: Path, meta: Any) -> None:
    nodes = workflow("text_to_video")
    nodes["1"]["_meta"] = meta
    (tmp_path / "own.json").write_text(json.dumps(nodes))
    assert graph.name_of(graph.load(tmp_path / "own.json"), "1") in ("HLWQLoadCheckpoint", "7")


def test_prompts_and_workflows_that_are_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    assert cli.main(["generate", "--prompts", str(tmp_path / "x")]) == 2
    (tmp_path / "y").write_text("[" * 100_000)
    assert cli.main(["queue", str(tmp_path / "y")]) == 2
    assert cli.main(["queue", str(tmp_path / "x")]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("title", ["{'checkpoint': 1}", "{0.__class__}", "{}", "%s", {"a": "{b}"}])
def test_a_title_is_text(title: Any) -> None:
    """What a workflow calls a node is never read as a form to be filled in."""
    nodes = workflow("text_to_video")
    width = next(node for node in nodes.values() if node["_meta"]["title"] == "Width")
    width["inputs"]["value"], width["_meta"]["title"] = 700, title
    with pytest.raises(InputError) as caught:
        grid.check(nodes, options=True)
    assert "=704" in str(caught.value)
