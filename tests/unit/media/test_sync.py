"""Picture and sound begin together and stay together: flash and click, read back from every kind of file."""

from __future__ import annotations

from pathlib import Path

import pytest

from hlwq_core import media

from .clips import flashes, marks

FASTEST = {"preset": "fastest", "quality": "small"}
# Matroska counts time in milliseconds, so a frame may stand half of one from where it belongs.
CONTAINERS = [
    {"container": "mp4", "audio_codec": "aac"},
    {"container": "mp4", "audio_codec": "opus"},
    {"container": "mp4", "audio_codec": "flac"},
    {"container": "mp4", "audio_codec": "mp3"},
    {"container": "mp4", "audio_codec": "aac", "keep_unfinished": True},
    {"container": "mkv", "audio_codec": "aac"},
    {"container": "mkv", "audio_codec": "opus"},
    {"container": "mkv", "audio_codec": "flac"},
    {"container": "mkv", "audio_codec": "mp3"},
    {"container": "mov", "audio_codec": "aac"},
    {"container": "mov", "audio_codec": "pcm"},
    {"container": "webm", "codec": "vp9"},
]


def apart(folder: Path, rate: float, seconds: float, sound_rate: int = 48_000, channels: int = 2, **settings) -> float:
    """The most that a flash and its click are apart, in milliseconds."""
    exact = media.frame_rate(rate)
    frames, sound = flashes(exact, round(seconds * exact), sound_rate, channels)
    chosen = media.Settings(**(FASTEST | settings))
    path = folder / f"clip{media.plan(chosen, channels).ending}"
    media.write_video(path, frames, exact, sound, chosen)
    seen, heard = marks(path)
    assert len(seen) == len(heard) == int(seconds) + 1
    assert abs(seen[0] - round(exact / 4) / exact) < 0.001, "the picture does not begin at 0"
    return 1000 * max(abs(a - b) for a, b in zip(seen, heard))


@pytest.mark.parametrize("settings", CONTAINERS, ids=lambda s: "-".join(map(str, s.values())))
def test_every_container(tmp_path: Path, settings: dict) -> None:
    assert apart(tmp_path, 24, 4, **settings) < 1


@pytest.mark.parametrize("rate", [23.976, 24, 25, 29.97, 30, 50, 60])
def test_rates(tmp_path: Path, rate: float) -> None:
    assert apart(tmp_path, rate, 4) < 1


@pytest.mark.parametrize("sound_rate", [8_000, 11_000, 16_000, 24_000, 44_100, 96_000])
def test_rates_of_sound(tmp_path: Path, sound_rate: int) -> None:
    assert apart(tmp_path, 24, 3, sound_rate) < 1


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("audio_codec", ["aac", "opus", "flac"])
def test_channels(tmp_path: Path, channels: int, audio_codec: str) -> None:
    assert apart(tmp_path, 24, 2, channels=channels, audio_codec=audio_codec) < 1


@pytest.mark.parametrize("container", ["mp4", "mkv", "mov", "webm"])
def test_the_end_of_a_minute(tmp_path: Path, container: str) -> None:
    """29.97 a second: the rate at which rounding would add up."""
    codec = "vp9" if container == "webm" else "h264"
    assert apart(tmp_path, 29.97, 60, 24_000, container=container, codec=codec) < 1
