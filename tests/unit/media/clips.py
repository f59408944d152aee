"""Clips whose pictures and sound mark the same moments, and where these moments are in a file."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from hlwq_core.media import Sound


def moving_square(frames: int = 9, height: int = 64, width: int = 96) -> torch.Tensor:
    """A light square that moves to the right over grey."""
    images = torch.full((frames, height, width, 3), 0.25)
    for i in range(frames):
        left = 4 * i % (width - 32)
        images[i, 16:48, left : left + 32] = torch.tensor([0.8, 0.5, 0.3])
    return images


def tone(seconds: float, rate: int = 24_000, channels: int = 2) -> Sound:
    """A sine of 440 Hz."""
    wave = 0.5 * torch.sin(torch.arange(round(seconds * rate)) * (2 * torch.pi * 440 / rate))
    return Sound(wave.repeat(channels, 1), rate)


def flashes(rate: Fraction, frames: int, sound_rate: int = 48_000, channels: int = 2) -> tuple[torch.Tensor, Sound]:
    """Black, silent, but for a white frame and a click that begin together: about each second, and at the end."""
    images = torch.zeros(1, 64, 64, 3).repeat(frames, 1, 1, 1)
    wave = torch.zeros(channels, round(frames / rate * sound_rate))
    click = 0.8 * torch.sin(torch.arange(sound_rate // 100) * (2 * torch.pi * 1000 / sound_rate) + 0.5)
    for frame in {*range(round(rate / 4), frames, round(rate)), frames - 2}:
        images[frame] = 1.0
        start = round(frame / rate * sound_rate)
        part = wave[:, start : start + len(click)]
        part += click[: part.shape[1]]
    return images, Sound(wave, sound_rate)


def marks(path: Path) -> tuple[list[float], list[float]]:
    """Seconds at which flashes, and clicks, begin in a file."""
    with av.open(str(path)) as container:
        seen = [float(f.pts * f.time_base) for f in container.decode(video=0) if _grey(f) > 128]
    parts, start, rate = [], None, 0
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            start = float(frame.pts * frame.time_base) if start is None else start
            rate = frame.sample_rate
            parts.append(mono(frame))
    sounding = np.flatnonzero(np.abs(np.concatenate(parts)) > 0.2)
    begins = sounding[np.insert(np.diff(sounding) > rate // 20, 0, True)]
    assert start is not None
    return seen, [start + int(sample) / rate for sample in begins]


def mono(frame: av.AudioFrame) -> np.ndarray:
    """The first channel as floats."""
    samples = frame.to_ndarray()
    if samples.dtype != np.float32:
        samples = samples / np.iinfo(samples.dtype).max
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    return samples[0]


def _grey(frame: av.VideoFrame) -> float:
    return float(frame.to_ndarray(format="gray").mean())


def decoded(path: Path) -> torch.Tensor:
    """The frames of a file, uint8 [frames, height, width, 3]."""
    with av.open(str(path)) as container:
        return torch.stack([torch.from_numpy(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)])
