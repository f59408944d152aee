"""Sound before it is coded: checked, trimmed, made louder or softer, faded, and as long as the picture."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch

from ..errors import InputError

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
# Samples lie in -1..1; a little more is common and is cut off by whoever plays it. Encoders refuse what is absurd.
_LOUDEST = 1000.0
_QUICKEST = 10_000_000  # samples a second: FFmpeg counts them in 32 bits


@dataclass(frozen=True)
class Sound:
    """`waveform` float [channels, samples] in -1..1, `rate` samples a second."""

    waveform: torch.Tensor
    rate: int

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.waveform.shape[-1] / self.rate


@dataclass(frozen=True)
class Shaping:
    """What is done to a sound before it is coded.

    Attributes:
        start: seconds of it that are left out; below 0: silence before it.
        volume: factor of the samples.
        fade_in, fade_out: seconds at the beginning, and at the end of the video.
    """

    start: float = 0.0
    volume: float = 1.0
    fade_in: float = 0.0
    fade_out: float = 0.0


def shape(sound: Sound, seconds: Fraction, how: Shaping | None = None) -> tuple[Sound, float]:
    """The sound at exactly `seconds`, cut or padded with silence; and the seconds added at its end (negative: cut)."""
    how = how or Shaping()
    wave = sound.waveform
    samples = round(seconds * sound.rate)
    begin = max(round(how.start * sound.rate), -samples)  # silence beyond the end would only cost memory
    wave = wave[..., begin:] if begin >= 0 else torch.nn.functional.pad(wave, (-begin, 0))
    added = samples - wave.shape[-1]
    wave = torch.nn.functional.pad(wave, (0, added)) if added > 0 else wave[..., :samples]
    if how.volume != 1.0:
        wave = wave * how.volume
    for length, at_end in ((how.fade_in, False), (how.fade_out, True)):
        count = min(round(length * sound.rate), samples)
        if count > 0:
            # Raised cosine: no click where the fade begins.
            ramp = 0.5 - 0.5 * torch.cos(torch.linspace(0, torch.pi, count, device=wave.device))
            wave = wave.clone()
            if at_end:
                wave[..., samples - count :] *= ramp.flip(0)
            else:
                wave[..., :count] *= ramp
    return Sound(wave, sound.rate), added / sound.rate


def check_sound(sound: Sound) -> None:
    """Refuse what cannot be coded.

    Raises:
        InputError: a shape, a rate or samples that no encoder takes.
    """
    wave = sound.waveform
    if wave.ndim != 2 or wave.shape[0] not in LAYOUTS:
        raise InputError(
            "this sound cannot be coded",
            expected="[channels, samples] with 1, 2 or 6 channels",
            found=list(wave.shape),
            fix="mix it down to stereo first",
        )
    if wave.shape[1] == 0:
        raise InputError(
            "the sound has 0 samples",
            expected="at least one sample",
            found=list(wave.shape),
            fix="disconnect the audio input for a silent video, or check the node that makes the sound",
        )
    if not isinstance(sound.rate, int) or not 0 < sound.rate <= _QUICKEST:
        raise InputError(
            "the sound has no sample rate",
            expected=f"whole samples a second, 1 to {_QUICKEST}",
            found=sound.rate,
            fix="check the node that makes the sound",
        )
    check_samples(sound)


def check_samples(sound: Sound) -> None:
    """Refuse samples on which encoders fail or never end.

    Raises:
        InputError: NaN, infinite, or far too loud.
    """
    wave = sound.waveform
    if not torch.isfinite(wave).all():
        raise InputError(
            "the sound holds NaN or infinite samples",
            expected="finite samples",
            found=f"{int((~torch.isfinite(wave)).sum())} of {wave.numel()} that are not",
            fix="check the node that makes the sound",
        )
    peak = float(wave.abs().max()) if wave.numel() else 0.0
    if peak > _LOUDEST:
        raise InputError(
            "the sound is too loud for any encoder",
            expected="samples in -1 to 1",
            found=f"samples up to {peak:.3g}",
            fix="lower audio_volume, or check the node that makes the sound: integers have to be divided by their largest "
            "value",
        )


def join(first: Sound, second: Sound, overlap: float) -> Sound:
    """Two sounds of one rate, the end of the first crossfaded with the beginning of the second over `overlap` seconds.

    Both parts have the same loudness in the middle as at the ends (equal power: they are not the same sound).
    """
    channels = max(first.waveform.shape[0], second.waveform.shape[0])
    a, b = (_channels(sound.waveform, channels) for sound in (first, second))
    count = min(round(overlap * first.rate), a.shape[1], b.shape[1])
    turn = torch.linspace(0, torch.pi / 2, count, device=a.device)
    faded = a[:, a.shape[1] - count :] * torch.cos(turn) + b[:, :count] * torch.sin(turn)
    return Sound(torch.cat([a[:, : a.shape[1] - count], faded, b[:, count:]], dim=1), first.rate)


def _channels(wave: torch.Tensor, channels: int) -> torch.Tensor:
    """A waveform with so many channels: one becomes all, others get silent ones."""
    if wave.shape[0] == 1:
        return wave.expand(channels, -1)
    return torch.nn.functional.pad(wave, (0, 0, 0, channels - wave.shape[0]))
