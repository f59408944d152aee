"""From options to a workflow, and the command against a fake ComfyUI. The real one: tests/http/test_generate.py."""

from __future__ import annotations

import asyncio
import wave
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from hlwq_core.client import graph
from hlwq_core.client.generate import Request, build, workflow_path
from hlwq_core.client.grid import check_size, frames_of, resample
from hlwq_core.errors import InputError, MediaError
from hlwq_core.media import probe

pytestmark = pytest.mark.timeout(60)


def play(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def value(nodes: graph.Nodes, title: str, name: str = "value") -> Any:
    node_id = graph.find(nodes, title)
    assert node_id is not None
    return nodes[node_id]["inputs"][name]


# ---- which workflow, and what is set in it ----


@pytest.mark.parametrize(
    ("request_", "stem"),
    [
        (Request(), "text_to_video"),
        (Request(image=Path("a.png")), "image_to_video"),
        (Request(audio=Path("a.wav")), "audio_to_video"),
        (Request(upscale="spatial"), "two_stage"),
        (Request(upscale="temporal"), "temporal_upscale"),
        (Request(image=Path("a.png"), upscale="spatial"), "image_to_video_two_stage"),
        (Request(upscale="spatial", workflow=Path("mine.json")), "mine"),
    ],
)
def test_the_workflow_follows_from_the_request(request_: Request, stem: str) -> None:
    assert workflow_path(request_).stem.removeprefix("hlwq_ltx23_") == stem


def test_what_no_workflow_does_is_refused() -> None:
    with pytest.raises(InputError, match="--image and --upscale temporal together"):
        workflow_path(Request(image=Path("a.png"), upscale="temporal"))


def test_every_option_reaches_its_input() -> None:
    nodes = build(
        Request(
            prompt="a cat",
            negative="a dog",
            checkpoint="mine",
            text_encoder="gemma",
            width=128,
            height=64,
            frames=17,
            fps=12.0,
            seed=7,
            upscale="temporal",
        )
    )
    assert value(nodes, "Prompt", "text") == "a cat" and value(nodes, "Negative prompt", "text") == "a dog"
    assert value(nodes, "Load Checkpoint", "checkpoint") == "mine"
    assert value(nodes, "Load Text Encoder", "checkpoint") == "mine"
    assert value(nodes, "Load Text Encoder", "text_encoder") == "gemma"
    assert [value(nodes, t) for t in ("Width", "Height", "Length", "Frame rate")] == [128, 64, 17, 12.0]
    assert value(nodes, "Seed", "noise_seed") == value(nodes, "Seed, stage 2", "noise_seed") == 7


def sound_file(path: Path, samples: int) -> Path:
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(bytes(2 * samples))
    return path


def test_a_short_sound_decides_the_length(tmp_path: Path) -> None:
    nodes = build(Request(audio=sound_file(tmp_path / "a.wav", 16_000), fps=24.0))
    assert value(nodes, "Length") == 17  # 8 n + 1 in 24
    long = build(Request(audio=sound_file(tmp_path / "b.wav", 160_000), fps=24.0))
    assert value(long, "Length") == value(graph.load(workflow_path(Request(audio=Path("x")))), "Length")


def test_a_sound_whose_file_does_not_say_how_long_it_is(tmp_path: Path) -> None:
    """As browsers record it: the samples are counted."""
    path = tmp_path / "a.webm"
    with path.open("wb") as file:
        with av.open(SimpleNamespace(write=file.write), "w", format="webm", options={"live": "1"}) as out:
            stream = out.add_stream("libopus", rate=48_000, layout="mono")
            for start in range(0, 48_000, 960):
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), dtype=np.float32), format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 48_000, start
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    info = probe(path)
    assert info.audio is not None and info.audio.duration == pytest.approx(1.0, abs=0.03)
    assert value(build(Request(audio=path, fps=24.0)), "Length") == 17


@pytest.mark.parametrize("options", [{}, {"frames": 25}, {"seconds": 1.0}])
def test_a_sound_of_0_samples_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="0 samples") as caught:
        build(Request(audio=sound_file(tmp_path / "a.wav", 0), **options))
    assert caught.value.file == str(tmp_path / "a.wav") and caught.value.fix


def test_a_sound_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("no sound")
    with pytest.raises(MediaError, match="a.wav") as caught:
        build(Request(audio=tmp_path / "a.wav", frames=25))
    assert caught.value.fix


@pytest.mark.parametrize("path", sorted(graph.SHIPPED.glob("*.json")), ids=lambda p: p.stem)
def test_every_shipped_workflow_has_the_titles_and_valid_sizes(path: Path) -> None:
    nodes = build(Request(prompt="x", negative="y", checkpoint="c", text_encoder="t", seed=1, steps=4, workflow=path))
    step = 64 if "two_stage" in path.stem else 32
    check_size(value(nodes, "Width"), value(nodes, "Height"), value(nodes, "Length"), step)


def test_the_schedule_keeps_its_ends_and_its_own_number_of_steps() -> None:
    official = value(graph.load(workflow_path(Request())), "Sigmas", "sigmas")
    numbers = [float(s) for s in official.split(",")]
    assert [float(s) for s in resample(official, 8).split(",")] == pytest.approx(numbers)
    for steps in (1, 3, 20):
        other = [float(s) for s in resample(official, steps).split(",")]
        assert len(other) == steps + 1 and other[0] == 1.0 and other[-1] == 0.0
        assert other == sorted(other, reverse=True)
    with pytest.raises(InputError):
        resample(official, 0)


@pytest.mark.parametrize(
    ("size", "fix"),
    [
        ((700, 512, 121, 32), "--width 704"),
        ((768, 530, 121, 32), "--height 544"),
        ((736, 512, 121, 64), "--width 704"),
        ((10, 512, 121, 32), "--width 32"),
        ((768, 512, 120, 32), "--frames 121"),
        ((768, 512, 0, 32), "--frames 1"),
    ],
)
def test_sizes_that_the_model_does_not_take_come_with_the_nearest(size: tuple[int, ...], fix: str) -> None:
    with pytest.raises(InputError) as caught:
        check_size(*size)
    assert fix in str(caught.value)


def test_seconds_become_valid_frames() -> None:
    assert frames_of(5, 24) == 121 and frames_of(0.1, 24) == 9
    assert all(frames_of(s / 7, 25) % 8 == 1 for s in range(1, 100))
    assert value(build(Request(seconds=2, fps=24.0)), "Length") == 49
    with pytest.raises(InputError):
        build(Request(seconds=2, frames=49))
    with pytest.raises(InputError):
        frames_of(float("nan"), 24)


def test_loras_come_behind_the_distilled_one_and_before_everything_else() -> None:
    before = graph.load(workflow_path(Request(upscale="spatial")))
    distilled = graph.find(before, "Distilled LoRA")
    users = [(i, n) for i, node in before.items() for n, v in node["inputs"].items() if v == [distilled, 0]]
    assert len(users) == 2  # one guider a stage

    nodes = build(Request(upscale="spatial", loras=[("a.safetensors", 0.5), ("b.safetensors", 1.0)]))
    first, second = graph.find(nodes, "LoRA 1"), graph.find(nodes, "LoRA 2")
    assert nodes[first]["inputs"] == {"model": [distilled, 0], "lora_name": "a.safetensors", "strength_model": 0.5}
    assert nodes[second]["inputs"]["model"] == [first, 0]
    assert all(nodes[i]["inputs"][n] == [second, 0] for i, n in users)
