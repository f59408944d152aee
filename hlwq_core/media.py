"""Frames and sound into one MP4 file, and what is in such a file. PyAV does the coding and the muxing."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import torch
from av.video.reformatter import Colorspace

from .errors import InputError, MediaError

QUALITIES = ("best", "high", "medium", "small")
AUDIO_CODECS = {"aac": "aac", "opus": "libopus"}
_AUDIO_BITRATE = {"best": 256_000, "high": 192_000, "medium": 128_000, "small": 96_000}
_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
_BT709 = 1  # AVCOL_PRI_BT709, AVCOL_TRC_BT709 and AVCOL_SPC_BT709 alike
_LIMITED_RANGE = 1


@dataclass(frozen=True)
class _Codec:
    encoder: str
    crf: Mapping[str, int]
    options: Mapping[str, str]
    smallest: int = 2  # pixels a side
    tag: str | None = None


# Constant-quality settings that look alike across codecs; their scales differ.
_CODECS = {
    "h264": _Codec("libx264", dict(zip(QUALITIES, (6, 17, 23, 28), strict=True)), {"preset": "medium"}),
    # libx265 writes past its buffers for pictures below one coding tree unit (64 pixels). Players on Apple's systems
    # want the tag hvc1.
    "h265": _Codec(
        "libx265",
        dict(zip(QUALITIES, (8, 20, 26, 31), strict=True)),
        {"x265-params": "log-level=error"},
        64,
        "hvc1",
    ),
    "vp9": _Codec(
        "libvpx-vp9",
        dict(zip(QUALITIES, (8, 24, 31, 38), strict=True)),
        {"deadline": "good", "cpu-used": "4"},
    ),
    "av1": _Codec("libsvtav1", dict(zip(QUALITIES, (10, 26, 34, 42), strict=True)), {"preset": "8"}, 64),
}


def video_codecs() -> list[str]:
    """The codecs that this PyAV can write, the most widely playable first."""

    def known(encoder: str) -> bool:
        try:
            av.Codec(encoder, "w")
        except ValueError:  # av.codec.codec.UnknownCodecError
            return False
        return True

    return [name for name, codec in _CODECS.items() if known(codec.encoder)]


# ---- reading ---------------------------------------------------------------------------------------------------------


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
    try:
        with av.open(str(path)) as container:
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
    except (av.FFmpegError, OSError) as error:
        raise MediaError(
            "not a media file that can be read",
            file=path,
            expected="a picture or sound file that FFmpeg reads",
            found=error,
            fix="correct the path, or give another file",
        ) from error


def _seconds(stream: Any, container: Any) -> float:
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1e6


def _seconds_of_sound(path: Path) -> float:
    with av.open(str(path)) as container:
        return sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))


# ---- writing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sound:
    """`waveform` float [channels, samples] in -1..1, `rate` samples a second."""

    waveform: torch.Tensor
    rate: int

    @property
    def duration(self) -> float:
        return self.waveform.shape[-1] / self.rate


@dataclass(frozen=True)
class Written:
    """What `write_mp4` did: seconds of silence added to the sound, or cut from it (negative)."""

    frames: int
    rate: Fraction
    added: float

    @property
    def duration(self) -> float:
        return float(self.frames / self.rate)

    def __str__(self) -> str:
        text = f"{self.frames} frames at {float(self.rate):g} a second, {self.duration:.3f} s"
        frame = 1 / self.rate
        if self.added > frame:
            return f"{text}; the sound was {self.added:.3f} s shorter and ends in silence"
        if -self.added > frame:
            return f"{text}; the sound was {-self.added:.3f} s longer and is cut"
        return text


def frame_rate(value: float) -> Fraction:
    """Frames a second as a fraction that containers can hold (23.976… becomes 24000/1001)."""
    if not 0 < value <= 1000:
        raise InputError(
            "the frame rate is out of range",
            expected="more than 0, at most 1000 frames a second",
            found=value,
            fix="give the rate that the frames were made for; LTX's is 24 or 25",
        )
    return Fraction(value).limit_denominator(1001)


def fit_sound(sound: Sound, seconds: Fraction) -> tuple[Sound, float]:
    """The sound at exactly `seconds`: cut, or padded with silence; and the seconds added (negative: cut)."""
    samples = round(seconds * sound.rate)
    added = samples - sound.waveform.shape[-1]
    if added > 0:
        wave = torch.nn.functional.pad(sound.waveform, (0, added))
    else:
        wave = sound.waveform[..., :samples]
    return Sound(wave, sound.rate), added / sound.rate


def check(frames: torch.Tensor, sound: Sound | None, codec: str) -> None:
    """Refuse what cannot be coded.

    Raises:
        InputError: no frames, a wrong shape, a size that the codec cannot take, a sound without samples.
    """
    if frames.ndim != 4 or frames.shape[-1] not in (1, 3, 4):
        raise InputError(
            "these are not frames",
            expected="[frames, height, width, 3]",
            found=list(frames.shape),
            fix="connect the IMAGE of a VAE decode node",
        )
    count, height, width, _ = frames.shape
    if count == 0:
        raise InputError(
            "there are no frames to save",
            expected="at least one frame",
            found=list(frames.shape),
            fix="check the node before this one",
        )
    if width % 2 or height % 2:
        raise InputError(
            "an MP4's width and height must be even",
            expected="even numbers",
            found=f"{width} x {height}",
            fix="scale or crop the frames first (LTX makes multiples of 32)",
        )
    smallest = _CODECS[codec].smallest
    if min(width, height) < smallest:
        raise InputError(
            f"the {codec} encoder cannot code so small a picture",
            expected=f"at least {smallest} x {smallest} pixels",
            found=f"{width} x {height}",
            fix="choose h264 or vp9, or make a larger picture",
        )
    if sound is None:
        return
    wave = sound.waveform
    if wave.ndim != 2 or wave.shape[0] not in _LAYOUTS:
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
    if sound.rate <= 0:
        raise InputError(
            "the sound has no sample rate",
            expected="samples a second, above 0",
            found=sound.rate,
            fix="check the node that makes the sound",
        )
    if not torch.isfinite(wave).all():
        raise InputError(
            "the sound holds NaN or infinite samples",
            expected="finite samples",
            found=f"{int((~torch.isfinite(wave)).sum())} of {wave.numel()} that are not",
            fix="check the node that makes the sound",
        )


def write_mp4(
    path: str | os.PathLike[str],
    frames: torch.Tensor,
    rate: Fraction,
    sound: Sound | None = None,
    *,
    codec: str = "h264",
    quality: str = "high",
    audio_codec: str = "aac",
    metadata: Mapping[str, Any] | None = None,
    on_frame: Callable[[int], None] | None = None,
) -> Written:
    """Write frames and sound to one MP4, beside its place first, so that no half file is ever found there.

    Args:
        frames: float [frames, height, width, 3] in 0..1.
        sound: cut or padded with silence to the video's length.
        codec: one of `video_codecs()`; `quality` one of QUALITIES; `audio_codec` one of AUDIO_CODECS.
        metadata: tags, stored as JSON the way ComfyUI does.
        on_frame: called with the number of frames coded; what it raises ends the work.

    Raises:
        InputError: see `check`; NaN in a frame.
        MediaError: the disk is full, the folder not writable, or an encoder failed.
    """
    path = Path(path)
    check(frames, sound, codec)
    added = 0.0
    if sound is not None:
        sound, added = fit_sound(sound, frames.shape[0] / rate)
    partial = path.with_name(f".{path.name}.partial")
    try:
        _encode(partial, frames, rate, sound, _CODECS[codec], quality, audio_codec, metadata or {}, on_frame)
        os.replace(partial, path)
    except (av.FFmpegError, OSError) as error:
        number = getattr(error, "errno", None)
        full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise MediaError(
            "the disk is full" if full else "the video could not be written",
            file=path,
            expected="room for the whole file" if full else "a folder that can be written to",
            found=error,
            fix="free some space and save again; nothing was left behind"
            if full
            else "check that the folder exists and can be written; try another codec",
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return Written(frames.shape[0], rate, added)


def _encode(
    path: Path,
    frames: torch.Tensor,
    rate: Fraction,
    sound: Sound | None,
    codec: _Codec,
    quality: str,
    audio_codec: str,
    metadata: Mapping[str, Any],
    on_frame: Callable[[int], None] | None,
) -> None:
    # use_metadata_tags keeps the workflow's tags, faststart lets a browser play before the whole file has come.
    options = {"movflags": "use_metadata_tags+faststart"}
    with av.open(str(path), "w", format="mp4", options=options) as container:
        for key, value in metadata.items():
            container.metadata[key] = json.dumps(value)
        video: Any = container.add_stream(codec.encoder, rate=rate)
        video.width, video.height, video.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        video.options = {"crf": str(codec.crf[quality]), **codec.options}
        video.time_base = 1 / rate
        context = video.codec_context
        if codec.encoder in ("libvpx-vp9", "libsvtav1"):
            context.bit_rate = 0  # constant quality, no bit rate to aim at
        if codec.tag:
            context.codec_tag = codec.tag
        # Without these marks players guess the colours by the picture's height.
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = _LIMITED_RANGE
        audio: Any = None
        if sound is not None:
            layout = _LAYOUTS[sound.waveform.shape[0]]
            audio = container.add_stream(
                AUDIO_CODECS[audio_codec], rate=_coded_rate(audio_codec, sound.rate), layout=layout
            )
            audio.bit_rate = _AUDIO_BITRATE[quality]
        for index, frame in enumerate(frames):
            container.mux(video.encode(_video_frame(frame, index, rate)))
            # Sound goes in beside its pictures, so that a player need not search the file for it.
            if sound is not None:
                _encode_sound(container, audio, sound, index / rate, (index + 1) / rate)
            if on_frame is not None:
                on_frame(index + 1)
        container.mux(video.encode(None))
        if audio is not None:
            container.mux(audio.encode(None))


def _video_frame(frame: torch.Tensor, index: int, rate: Fraction) -> av.VideoFrame:
    pixels = frame[..., :3].detach().to(device="cpu", dtype=torch.float32)
    if not torch.isfinite(pixels).all():
        raise InputError(
            f"frame {index} holds NaN or infinite values",
            expected="finite values",
            found=f"{int((~torch.isfinite(pixels)).sum())} of {pixels.numel()} that are not",
            fix="the model or the VAE overflowed: try another precision, or HLWQ Verify on the checkpoint",
        )
    if pixels.shape[-1] == 1:
        pixels = pixels.expand(-1, -1, 3)
    bytes_ = pixels.mul(255).add_(0.5).clamp_(0, 255).to(torch.uint8).contiguous()
    coded = av.VideoFrame.from_ndarray(bytes_.numpy(), format="rgb24")
    coded = coded.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
    coded.pts, coded.time_base = index, 1 / rate
    return coded


def _encode_sound(container: Any, stream: Any, sound: Sound, start: Fraction, end: Fraction) -> None:
    first, last = round(start * sound.rate), round(end * sound.rate)
    if first == last:
        return
    wave = sound.waveform[:, first:last].detach().to(device="cpu", dtype=torch.float32).contiguous()
    frame = av.AudioFrame.from_ndarray(wave.numpy(), format="fltp", layout=_LAYOUTS[wave.shape[0]])
    frame.sample_rate, frame.pts, frame.time_base = sound.rate, first, Fraction(1, sound.rate)
    container.mux(stream.encode(frame))


def _coded_rate(audio_codec: str, rate: int) -> int:
    rates: Sequence[int] | None = av.Codec(AUDIO_CODECS[audio_codec], "w").audio_rates
    # Opus always plays at 48 kHz; PyAV resamples whatever the encoder does not take.
    return rate if audio_codec == "aac" and rate in (rates or ()) else 48_000
