"""What is in a media file, read with PyAV."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av

from ..errors import MediaError

if TYPE_CHECKING:
    import torch

    from .sound import Sound


@dataclass(frozen=True)
class VideoStream:
    """A video stream: `frames` decoded frames of `width` x `height` pixels at `rate` a second, `duration` seconds."""

    codec: str
    width: int
    height: int
    frames: int
    rate: Fraction
    duration: float


@dataclass(frozen=True)
class AudioStream:
    """An audio stream: `rate` samples a second in each of `channels`, `duration` seconds."""

    codec: str
    rate: int
    channels: int
    duration: float


@dataclass(frozen=True)
class MediaInfo:
    """What a media file holds; `size` in bytes, `metadata` as text."""

    path: Path
    size: int
    duration: float
    video: VideoStream | None
    audio: AudioStream | None
    metadata: dict[str, str]

    def __str__(self) -> str:
        parts = [str(self.path)]
        if v := self.video:
            parts.append(
                f"video {v.codec} {v.width}x{v.height}, {v.frames} frames at {float(v.rate):g}/s, {v.duration:.3f} s"
            )
        if a := self.audio:
            parts.append(f"audio {a.codec} {a.rate} Hz x {a.channels}, {a.duration:.3f} s")
        return "; ".join(parts)


def probe(path: str | os.PathLike[str]) -> MediaInfo:
    """The streams of a media file. Frames are counted by decoding, durations taken from the container.

    A container that does not say how long its sound is (recorded live by a browser, say) is decoded for that too.

    Raises:
        MediaError: no such file, or not a file that FFmpeg can read to its end.
    """
    path = Path(path)
    with _reading(path) as container:
        video = audio = None
        if container.streams.video:
            v = container.streams.video[0]
            frames = sum(1 for _ in container.decode(v))
            video = VideoStream(
                v.codec_context.codec.canonical_name,
                v.width,
                v.height,
                frames,
                Fraction(v.average_rate or 0),
                _seconds(v, container),
            )
        if container.streams.audio:
            a = container.streams.audio[0]
            seconds = _seconds(a, container) or _seconds_of_sound(path)
            audio = AudioStream(a.codec_context.codec.canonical_name, a.rate, a.channels, seconds)
        return MediaInfo(
            path,
            path.stat().st_size,
            (container.duration or 0) / 1e6,
            video,
            audio,
            dict(container.metadata),
        )


def _seconds(stream: Any, container: Any) -> float:
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1e6


def _seconds_of_sound(path: Path) -> float:
    with av.open(str(path)) as container:
        return sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))


def read_frames(path: str | os.PathLike[str]) -> Iterator[torch.Tensor]:
    """The frames of a file one after the other, uint8 [1, height, width, 3].

    Raises:
        MediaError: see `probe`.
    """
    import torch

    with _reading(path) as container:
        for frame in container.decode(video=0):
            yield torch.from_numpy(frame.to_ndarray(format="rgb24"))[None]


def read_sound(path: str | os.PathLike[str], rate: int) -> Sound | None:
    """The first sound of a file, at `rate` samples a second; None if there is none.

    Raises:
        MediaError: see `probe`.
    """
    import torch

    from .sound import Sound

    with _reading(path) as container:
        if not container.streams.audio:
            return None
        resampler = av.AudioResampler(format="fltp", rate=rate)
        parts = []
        for frame in [*container.decode(audio=0), None]:
            parts += [torch.from_numpy(part.to_ndarray()) for part in resampler.resample(frame)]
        return Sound(torch.cat(parts, dim=1), rate) if parts else None


@contextlib.contextmanager
def _reading(path: str | os.PathLike[str]) -> Iterator[Any]:
    try:
        with av.open(str(path)) as container:
            yield container
    except (av.FFmpegError, OSError) as error:
        raise MediaError(
            "not a media file that can be read",
            file=path,
            expected="a picture or sound file that FFmpeg reads",
            found=error,
            fix="correct the path, or give another file",
        ) from error
