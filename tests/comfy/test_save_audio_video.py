"""HLWQSaveAudioVideo: one file, in sync, whole or not there at all. Files are read back with PyAV."""

from __future__ import annotations

import importlib
import json
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
import torch


@pytest.fixture
def node(pack, tmp_path, monkeypatch):
    module = importlib.import_module(f"{pack.__name__}.nodes.save_audio_video")
    saving = importlib.import_module(f"{pack.__name__}.nodes.saving")
    monkeypatch.setattr(saving.folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    (tmp_path / "output").mkdir()
    return module


@pytest.fixture
def media(pack):
    return importlib.import_module(f"{pack.__name__}.hlwq_core.media")


@pytest.fixture
def errors(pack):
    return importlib.import_module(f"{pack.__name__}.hlwq_core.errors")


def moving_square(frames: int = 9, height: int = 64, width: int = 96) -> torch.Tensor:
    images = torch.full((frames, height, width, 3), 0.25)
    for i in range(frames):
        images[i, 16:48, 4 * i : 4 * i + 32] = torch.tensor([0.8, 0.5, 0.3])
    return images


def tone(seconds: float, rate: int = 24_000, channels: int = 2, batch: int = 1) -> dict:
    wave = 0.5 * torch.sin(torch.arange(round(seconds * rate)) * (2 * torch.pi * 440 / rate))
    return {"waveform": wave.repeat(batch, channels, 1), "sample_rate": rate}


def save(node, images=None, audio=None, **kwargs):
    settings = {
        "frame_rate": 24.0,
        "filename_prefix": "clips/test",
        "codec": "h264",
        "quality": "high",
        "audio_codec": "aac",
    }
    images = moving_square() if images is None else images
    return node.HLWQSaveAudioVideo.execute(images, audio=audio, **(settings | kwargs))


def saved_files(tmp_path: Path) -> list[Path]:
    return sorted(p for p in (tmp_path / "output").rglob("*") if p.is_file())


@pytest.mark.parametrize("codec", ["h264", "h265", "vp9", "av1"])
@pytest.mark.parametrize("audio_codec", ["aac", "opus"])
def test_picture_and_sound_survive(node, media, tmp_path, codec, audio_codec):
    if codec not in media.video_codecs():
        pytest.skip(f"this PyAV has no {codec} encoder")
    images = moving_square()
    save(node, images, tone(9 / 24), codec=codec, audio_codec=audio_codec, quality="best")
    (path,) = saved_files(tmp_path)
    info = media.probe(path)
    assert (info.video.frames, info.video.rate, info.video.width, info.video.height) == (9, 24, 96, 64)
    assert info.video.codec == {"h265": "hevc"}.get(codec, codec)
    assert info.audio.codec == audio_codec
    assert abs(info.video.duration - info.audio.duration) < 1 / 24
    with av.open(str(path)) as container:
        decoded = [torch.from_numpy(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    off = (torch.stack(decoded).float() - images * 255).abs().mean()
    assert off < 4, f"picture off by {off:.1f} grey levels on average"
    with av.open(str(path)) as container:
        sound = torch.cat([torch.from_numpy(f.to_ndarray()) for f in container.decode(audio=0)], dim=1)
    middle = sound[0, sound.shape[1] // 4 : sound.shape[1] // 2].float()
    assert 0.3 < middle.std() < 0.4  # a sine of 0.5 has 0.354


@pytest.mark.parametrize("rate", [7.5, 23.976, 25.0, 48.0])
@pytest.mark.parametrize("sound_rate", [16_000, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("seconds", [0.05, 5.0])
def test_sound_ends_with_the_picture(node, media, tmp_path, rate, sound_rate, seconds):
    result = save(node, audio=tone(seconds, sound_rate, channels=1), frame_rate=rate)
    info = media.probe(saved_files(tmp_path)[0])
    assert info.video.frames == 9
    assert abs(float(info.video.rate) - rate) < 0.001
    assert abs(info.video.duration - 9 / rate) < 0.002
    assert abs(info.video.duration - info.audio.duration) < 1 / rate
    said = result.ui["text"][0]
    assert ("silence" if seconds < 9 / rate else "cut") in said


def test_padding_is_silence(node, tmp_path):
    save(node, moving_square(24), tone(0.25))
    with av.open(str(saved_files(tmp_path)[0])) as container:
        sound = torch.cat([torch.from_numpy(f.to_ndarray()) for f in container.decode(audio=0)], dim=1)
    assert sound[0, :4800].abs().max() > 0.4
    assert sound[0, 9600:].abs().max() < 0.01


def test_without_sound(node, media, tmp_path):
    save(node)
    info = media.probe(saved_files(tmp_path)[0])
    assert info.audio is None
    assert info.video.frames == 9


def test_video_output_and_preview(node, tmp_path):
    result = save(node, audio=tone(1))
    (video,) = result.args[0]
    assert video.get_dimensions() == (96, 64)
    assert video.get_components().images.shape == (9, 64, 96, 3)
    assert result.ui["images"][0] == {"filename": "test_00001_.mp4", "subfolder": "clips", "type": "output"}
    assert result.ui["animated"] == (True,)


def test_numbers_go_up(node, tmp_path):
    save(node)
    save(node)
    assert [p.name for p in saved_files(tmp_path)] == ["test_00001_.mp4", "test_00002_.mp4"]


def test_workflow_in_the_file(node, media, tmp_path, monkeypatch):
    hidden = SimpleNamespace(prompt={"1": {"class_type": "A"}}, extra_pnginfo={"workflow": {"nodes": []}})
    monkeypatch.setattr(node.HLWQSaveAudioVideo, "hidden", hidden, raising=False)
    save(node)
    tags = media.probe(saved_files(tmp_path)[0]).metadata
    assert json.loads(tags["prompt"]) == hidden.prompt
    assert json.loads(tags["workflow"]) == {"nodes": []}


def test_a_picture_that_cannot_be_written_leaves_the_video_saved(pack, node, tmp_path, monkeypatch, caplog):
    from comfyui_hlwq.hlwq_core.errors import MediaError
    from comfyui_hlwq.nodes import saving

    def full(path, frame, metadata):
        raise MediaError("the file cannot be written", file=path, expected="room", found="none", fix="make room")

    monkeypatch.setattr(saving, "write_png", full)
    result = save(node, workflow=saving.WORKFLOW[1])
    assert [p.name for p in saved_files(tmp_path)] == ["test_00001_.mp4"]
    assert "without the picture beside it" in result.ui["text"][0] and "make room" in caplog.text


def test_disable_metadata(pack, node, media, tmp_path, monkeypatch):
    import comfy.cli_args

    hidden = SimpleNamespace(prompt={"1": {}}, extra_pnginfo=None)
    monkeypatch.setattr(node.HLWQSaveAudioVideo, "hidden", hidden, raising=False)
    monkeypatch.setattr(comfy.cli_args.args, "disable_metadata", True)
    save(node)
    assert "prompt" not in media.probe(saved_files(tmp_path)[0]).metadata


def test_batch_of_sounds_is_a_batch_of_videos(node, media, tmp_path):
    audio = tone(0.125, batch=3)
    result = save(node, moving_square(9), audio)
    assert len(result.args[0]) == 3
    assert [media.probe(p).video.frames for p in saved_files(tmp_path)] == [3, 3, 3]


def test_alpha_and_grey_frames(node, media, tmp_path):
    save(node, torch.rand(3, 64, 64, 4))
    save(node, torch.rand(3, 64, 64, 1))
    assert [media.probe(p).video.frames for p in saved_files(tmp_path)] == [3, 3]


@pytest.mark.parametrize(
    ("images", "audio", "settings", "words"),
    [
        (torch.rand(0, 64, 64, 3), None, {}, ["no frames"]),
        (torch.rand(3, 63, 64, 3), None, {}, ["even", "64 x 63"]),
        (torch.rand(64, 64, 3), None, {}, ["not frames"]),
        (torch.rand(3, 32, 32, 3), None, {"codec": "h265"}, ["h265", "64 x 64", "32 x 32"]),
        (torch.rand(3, 64, 64, 3), tone(0.0), {}, ["0 samples", "disconnect"]),
        (torch.rand(3, 64, 64, 3), tone(1.0, channels=5), {}, ["channels"]),
        (torch.rand(3, 64, 64, 3), tone(1.0, batch=2), {}, ["3 frames, 2 sounds"]),
        (torch.full((3, 64, 64, 3), torch.nan), None, {}, ["NaN", "frame 0"]),
        (torch.rand(3, 64, 64, 3), None, {"filename_prefix": "../escape"}, ["output folder", "escape"]),
        (torch.rand(3, 64, 64, 3), None, {"filename_prefix": "/tmp/escape"}, ["output folder"]),
        (torch.rand(3, 64, 64, 3), None, {"frame_rate": 0.0}, ["frame rate"]),
    ],
)  # fmt: skip
def test_refused_with_a_reason(node, errors, tmp_path, images, audio, settings, words):
    with pytest.raises(errors.InputError) as caught:
        save(node, images, audio, **settings)
    for word in [*words, "expected: ", "found: ", "what to do: "]:
        assert word in str(caught.value)
    assert saved_files(tmp_path) == []


def test_interrupted_leaves_nothing(node, tmp_path, monkeypatch):
    class Stop(BaseException):
        pass

    class Bar:
        def __init__(self, total): ...

        def update_absolute(self, value):
            if value >= 2:
                raise Stop

    monkeypatch.setattr(node, "ProgressBar", Bar)
    with pytest.raises(Stop):
        save(node, audio=tone(1))
    assert saved_files(tmp_path) == []


def test_unwritable_folder(media, errors, tmp_path):
    with pytest.raises(errors.MediaError, match="folder does not exist"):
        media.write_video(tmp_path / "nowhere" / "clip.mp4", moving_square(), Fraction(24))


def test_probe_says_what_is_not_media(media, errors, tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(errors.MediaError, match=r"text\.mp4"):
        media.probe(tmp_path / "text.mp4")
