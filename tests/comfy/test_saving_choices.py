"""The save node's further inputs, on the real node: what lands where, and what is refused before anything runs."""

from __future__ import annotations

import importlib
import json
import time
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

HIDDEN = SimpleNamespace(
    prompt={"3": {"class_type": "RandomNoise", "_meta": {"title": "Seed"}, "inputs": {"noise_seed": 7}}},
    extra_pnginfo={"workflow": {"nodes": []}},
)


@pytest.fixture
def node(pack, tmp_path, monkeypatch):
    saving = importlib.import_module(f"{pack.__name__}.nodes.saving")
    for kind in ("output", "temp"):
        (tmp_path / kind).mkdir()
        monkeypatch.setattr(saving.folder_paths, f"get_{kind}_directory", lambda kind=kind: str(tmp_path / kind))
    module = importlib.import_module(f"{pack.__name__}.nodes.save_audio_video").HLWQSaveAudioVideo
    monkeypatch.setattr(module, "hidden", HIDDEN, raising=False)
    return module


@pytest.fixture
def probe(pack):
    return importlib.import_module(f"{pack.__name__}.hlwq_core.media").probe


def save(node, **choices):
    choices = {"frame_rate": 24.0, "filename_prefix": "clip"} | choices
    return node.execute(torch.rand(5, 64, 64, 3), **choices)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_old_workflows_call_it_as_ever(node, tmp_path):
    """The inputs of 0.1.0, and nothing else."""
    old = {"codec": "h264", "quality": "high", "audio_codec": "aac", "filename_prefix": "clip", "frame_rate": 24.0}
    node.execute(images=torch.rand(5, 64, 64, 3), audio=None, **old)
    assert files(tmp_path) == ["output/clip_00001_.mp4"]


def test_tokens_over_the_api(node, tmp_path):
    save(node, filename_prefix="%date:yyyy-MM-dd%/s%Seed.noise_seed%_%width%x%height%_%frames%")
    day = time.strftime("%Y-%m-%d")
    assert files(tmp_path / "output") == [f"{day}/s7_64x64_5_00001_.mp4"]


def test_preview_only(node, tmp_path):
    result = save(node, save_output=False)
    assert files(tmp_path) == ["temp/clip_00001_.mp4"]
    assert result.ui["images"][0]["type"] == "temp"


def test_png_beside(node, tmp_path):
    save(node, workflow="in the file and a PNG")
    assert files(tmp_path / "output") == ["clip_00001_.mp4", "clip_00001_.png"]
    with Image.open(tmp_path / "output" / "clip_00001_.png") as image:
        assert json.loads(image.text["prompt"]) == HIDDEN.prompt and image.size == (64, 64)


def test_workflow_nowhere(node, probe, tmp_path):
    save(node, workflow="nowhere")
    assert "prompt" not in probe(tmp_path / "output" / "clip_00001_.mp4").metadata


@pytest.mark.parametrize(
    ("codec", "shown", "animated"),
    [
        ("gif", "clip_00001_.gif", True),
        ("webp", "clip_00001_.webp", False),
        ("png", "00001.png", False),
        ("vp9", "clip_00001_.webm", True),
    ],
)
def test_what_the_node_shows_and_hands_on(node, codec, shown, animated):
    result = save(node, codec=codec, container="webm" if codec == "vp9" else "auto")
    assert result.ui["images"][0]["filename"] == shown
    assert ("animated" in result.ui) is animated
    (video,) = result.args[0]
    assert video.get_components().images.shape == (5, 64, 64, 3)


def test_the_number_is_one_more_than_any_of_the_prefix(node, tmp_path):
    for codec in ("h264", "gif", "png", "h264"):
        save(node, codec=codec)
    assert (tmp_path / "output" / "clip_00004_.mp4").is_file()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"codec": "h264", "container": "webm"}, "webm files cannot hold h264"),
        ({"codec": "h264", "crf": 60}, "outside h264's scale"),
        ({"codec": "gif", "bit_depth": "10"}, "gif has no 10 bits"),
        ({"filename_prefix": "video/" + "n" * 250}, "name is too long"),
        ({"codec": "h266"}, "unknown codec"),
        ({"codec": "gif", "frame_rate": 120.0}, "cannot be played that quickly"),
        ({"frame_rate": -3.0}, "frame rate is out of range"),
        ({"frame_rate": float("nan")}, "frame rate is out of range"),
    ],
)
def test_refused_before_anything_runs(node, given, words):
    assert words in node.validate_inputs(**given)


def test_not_refused(node):
    assert node.validate_inputs() is True
    assert node.validate_inputs(filename_prefix="%date:yyyy-MM-dd%/" + "%a.b%" * 60, codec=None) is True
    assert node.validate_inputs(filename_prefix="x", codec="prores", container="mov", crf=-1, bit_depth="8") is True


@pytest.mark.parametrize("prefix", ["../up", "a/../../up", "/tmp/up", "../output2/up", "a/b/../../../up"])
def test_no_prefix_leads_out(pack, node, tmp_path, prefix):
    errors = importlib.import_module(f"{pack.__name__}.hlwq_core.errors")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(errors.InputError, match="would not lie in the output folder"):
        save(node, filename_prefix=prefix)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("prefix", "path"),
    [
        ("", "HLWQ_00001_.mp4"),
        ("sub/", "sub/HLWQ_00001_.mp4"),
        ("a/./b/../clip", "a/clip_00001_.mp4"),
        ("ü 漢字 😀 'q", "ü 漢字 😀 'q_00001_.mp4"),
        ("ends.", "ends._00001_.mp4"),
        ("nul", "nul_00001_.mp4"),
        ("no\udcfftext\0", "no_text__00001_.mp4"),
        ("-rf 50% off", "-rf 50% off_00001_.mp4"),
    ],
)
def test_unusual_prefixes(node, tmp_path, prefix, path):
    save(node, filename_prefix=prefix)
    assert [str(p.relative_to(tmp_path / "output")) for p in (tmp_path / "output").rglob("*.mp4")] == [path]


def test_a_folder_that_cannot_be_made(pack, node, tmp_path):
    (tmp_path / "output" / "taken").write_text("a file")
    errors = importlib.import_module(f"{pack.__name__}.hlwq_core.errors")
    with pytest.raises(errors.InputError, match="folder cannot be made"):
        save(node, filename_prefix="taken/deeper/clip")


@pytest.mark.parametrize("kind", ["EmptyLTXVLatentVideo", "LTXVImgToVideo"])
def test_what_core_rounded_is_said(node, monkeypatch, kind):
    prompt = {
        "1": {"class_type": "PrimitiveInt", "inputs": {"value": 72}},
        "2": {"class_type": kind, "inputs": {"length": ["1", 0], "width": 100, "height": 64}},
    }
    monkeypatch.setattr(node, "hidden", SimpleNamespace(prompt=prompt, extra_pnginfo=None))
    (text,) = save(node).ui["text"]
    assert "the length of 72 became 65: LTX makes 65 or 73" in text
    assert "the width of 100 became 96: LTX makes 96 or 128" in text and "height of" not in text
    prompt["1"]["inputs"]["value"] = 73
    prompt["2"]["inputs"]["width"] = 96
    assert "became" not in save(node).ui["text"][0]


def test_every_choice_of_the_sound_arrives(pack, node, tmp_path):
    """Volume, trim and fades, heard in a file that loses nothing."""
    media = importlib.import_module(f"{pack.__name__}.hlwq_core.media")
    ramp = {"waveform": torch.linspace(0, 0.8, 48_000)[None, None], "sample_rate": 48_000}
    choices = dict(codec="prores", audio_codec="pcm", container="mkv", frame_rate=10.0)
    save(node, audio=ramp, audio_volume=0.5, audio_start=0.25, audio_fade_in=0.1, audio_fade_out=0.2, **choices)
    wave = media.read_sound(tmp_path / "output" / "clip_00001_.mkv", 48_000).waveform[0]
    assert wave.shape == (24_000,)
    assert wave[0] == 0 and wave[-1].abs() < 1e-4
    assert wave[12_000] == pytest.approx(0.5 * 0.8 * 24_000 / 48_000, abs=1e-3)
    assert wave[2_400] == pytest.approx(0.5 * 0.5 * 0.8 * 14_400 / 48_000, abs=1e-2)


@pytest.mark.parametrize(
    ("choices", "frames"),
    [
        (dict(ping_pong=True), 8),
        (dict(loop_count=2), 15),
        (dict(ping_pong=True, loop_count=1), 16),
        (dict(loop_count=2, codec="gif"), 5),
    ],
)
def test_ping_pong_and_loops_arrive(node, probe, tmp_path, choices, frames):
    save(node, **choices)
    (path,) = (tmp_path / "output").iterdir()
    assert probe(path).video.frames == frames


def test_rates_numbers_and_depths_arrive(node, probe, tmp_path):
    import av

    save(node, frame_rate=23.976, codec="h265", bit_depth="10", crf=40, preset="fastest", container="mkv")
    path = tmp_path / "output" / "clip_00001_.mkv"
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert stream.codec_context.pix_fmt == "yuv420p10le"
    assert abs(float(probe(path).video.rate) - 24000 / 1001) < 1e-6
    save(node, codec="h265", crf=4, container="mkv")
    assert (tmp_path / "output" / "clip_00002_.mkv").stat().st_size > 3 * path.stat().st_size
