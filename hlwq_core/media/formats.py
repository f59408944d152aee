"""What can be written: containers, codecs of picture and sound, their qualities and presets, and which go together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import av

from ..errors import InputError

QUALITIES = ("best", "high", "medium", "small")
PRESETS = ("fastest", "fast", "balanced", "smallest file")
# Container -> ending of the file. "png" is a folder of pictures.
CONTAINERS = {
    "mp4": ".mp4",
    "mkv": ".mkv",
    "webm": ".webm",
    "mov": ".mov",
    "gif": ".gif",
    "webp": ".webp",
    "png": "",
}
FFMPEG_FORMATS = {"mkv": "matroska"}  # where they are called otherwise


def _by_quality(*values: int) -> Mapping[str, int]:
    return dict(zip(QUALITIES, values, strict=True))


def _presets(option: str, *values: str) -> Mapping[str, Mapping[str, str]]:
    return {preset: {option: value} for preset, value in zip(PRESETS, values, strict=True)}


@dataclass(frozen=True)
class VideoCodec:
    """A way to code pictures.

    Attributes:
        encoder: FFmpeg's name; empty for a folder of pictures.
        containers: those that hold it, the usual one first.
        pixels: bits of a colour -> FFmpeg's pixel format.
        crf: quality -> number on the encoder's scale of constant quality; empty where there is none.
        crf_range: of that scale, best to worst.
        presets: preset -> the encoder's options.
        options: further options of the encoder.
        quality_options: quality -> options, for encoders without a scale.
        smallest: least pixels a side.
        even: whether width and height must be even.
        audio: the sound's codec that goes with it when nothing was chosen; empty where there can be none.
    """

    encoder: str
    containers: tuple[str, ...]
    pixels: Mapping[int, str]
    crf: Mapping[str, int] = field(default_factory=dict)
    crf_range: tuple[int, int] = (0, 0)
    presets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    quality_options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    smallest: int = 2
    even: bool = True
    audio: str = "aac"


# Qualities look alike across codecs; the scales differ. The presets were measured: see docs/saving.md.
VIDEO_CODECS = {
    "h264": VideoCodec(
        "libx264",
        ("mp4", "mkv", "mov"),
        {8: "yuv420p", 10: "yuv420p10le"},
        _by_quality(6, 17, 23, 28),
        (0, 51),
        _presets("preset", "superfast", "veryfast", "faster", "slow"),
    ),
    # libx265 writes past its buffers for pictures below one coding tree unit (64 pixels).
    "h265": VideoCodec(
        "libx265",
        ("mp4", "mkv", "mov"),
        {8: "yuv420p", 10: "yuv420p10le"},
        _by_quality(8, 20, 26, 31),
        (0, 51),
        _presets("preset", "ultrafast", "superfast", "fast", "slow"),
        {"x265-params": "log-level=error"},
        smallest=64,
    ),
    "vp9": VideoCodec(
        "libvpx-vp9",
        ("mp4", "webm", "mkv"),
        {8: "yuv420p", 10: "yuv420p10le"},
        _by_quality(8, 24, 31, 38),
        (0, 63),
        _presets("cpu-used", "8", "6", "4", "2"),
        {"deadline": "good", "row-mt": "1"},
    ),
    "av1": VideoCodec(
        "libsvtav1",
        ("mp4", "webm", "mkv"),
        {8: "yuv420p", 10: "yuv420p10le"},
        _by_quality(10, 26, 34, 42),
        (0, 63),
        _presets("preset", "12", "10", "8", "5"),
        smallest=64,
    ),
    "prores": VideoCodec(
        "prores_ks",
        ("mov", "mkv"),
        {10: "yuv422p10le"},
        options={"vendor": "apl0"},
        quality_options={
            quality: {"profile": profile}
            for quality, profile in zip(QUALITIES, ("hq", "standard", "lt", "proxy"), strict=True)
        },
        smallest=16,
        audio="pcm",
    ),
    "ffv1": VideoCodec(
        "ffv1",
        ("mkv",),
        {8: "bgr0", 10: "gbrp10le"},
        options={"level": "3", "slices": "4", "slicecrc": "1"},
        smallest=4,
        even=False,
        audio="flac",
    ),
    "gif": VideoCodec("gif", ("gif",), {8: "pal8"}, smallest=1, even=False, audio=""),
    "webp": VideoCodec(
        "libwebp_anim",
        ("webp",),
        {8: "bgra"},
        quality_options={
            quality: {"lossless": str(int(quality == "best")), "quality": value}
            for quality, value in zip(QUALITIES, ("100", "90", "80", "60"), strict=True)
        },
        # 4 and 5 save nothing over 3, 6 takes 27 times as long for two per cent.
        presets=_presets("compression_level", "0", "1", "2", "3"),
        smallest=1,
        even=False,
        audio="",
    ),
    "png": VideoCodec(
        "",
        ("png",),
        {8: "rgb24"},
        presets=_presets("compress_level", "1", "2", "4", "9"),
        smallest=1,
        even=False,
        audio="",
    ),
}


@dataclass(frozen=True)
class AudioCodec:
    """A way to code sound.

    Attributes:
        encoder: FFmpeg's name.
        containers: those that hold it.
        bit_rates: quality -> bits a second; empty where nothing is lost.
        channels: the most that it takes.
        rates: samples a second that it takes; empty: any.
        sample_format: what it is given, where FFmpeg's first choice is too coarse.
    """

    encoder: str
    containers: tuple[str, ...]
    bit_rates: Mapping[str, int] = field(default_factory=dict)
    channels: int = 6
    rates: tuple[int, ...] = ()
    sample_format: str | None = None


_LOSSY = _by_quality(256_000, 192_000, 128_000, 96_000)
_MPEG_RATES = (48_000, 44_100, 32_000, 24_000, 22_050, 16_000)
AUDIO_CODECS = {
    "aac": AudioCodec("aac", ("mp4", "mkv", "mov"), _LOSSY, rates=(96_000, 88_200, 64_000, *_MPEG_RATES)),
    # Opus plays at 48 kHz whatever went in.
    "opus": AudioCodec("libopus", ("mp4", "webm", "mkv"), _LOSSY, rates=(48_000,)),
    "flac": AudioCodec("flac", ("mp4", "mkv"), sample_format="s32"),
    "pcm": AudioCodec("pcm_s24le", ("mov", "mkv")),
    "mp3": AudioCodec("libmp3lame", ("mp4", "mkv", "mov"), _LOSSY, channels=2, rates=_MPEG_RATES),
}


@dataclass(frozen=True)
class Settings:
    """How a video is to be written; what can be chosen in the nodes.

    Attributes:
        codec: one of `video_codecs()`.
        quality: one of QUALITIES; sets the sound's bit rate too.
        crf: a number on the encoder's own scale in place of the word.
        preset: one of PRESETS.
        container: one of CONTAINERS, or "auto": the codec's usual one.
        audio_codec: one of `audio_codecs()`, or "auto": what the container's players know.
        bit_depth: bits of a colour, 8 or 10.
        hardware: "auto", "off", or one of hardware.FAMILIES.
        keep_unfinished: on a failure or a cancel, keep what was coded so far, as a file that plays.
        loops: how often it is played again; 0 for GIF and WebP: for ever.
    """

    codec: str = "h264"
    quality: str = "high"
    crf: int | None = None
    preset: str = "balanced"
    container: str = "auto"
    audio_codec: str = "auto"
    bit_depth: int = 8
    hardware: str = "auto"
    keep_unfinished: bool = False
    loops: int = 0


@dataclass(frozen=True)
class Plan:
    """Settings that fit together, with every "auto" decided."""

    settings: Settings
    name: str
    codec: VideoCodec
    container: str
    bits: int
    audio_name: str
    audio: AudioCodec | None
    crf: int | None

    @property
    def ending(self) -> str:
        """Of the file."""
        return CONTAINERS[self.container]

    @property
    def pixels(self) -> str:
        """FFmpeg's pixel format."""
        return self.codec.pixels[self.bits]

    @property
    def encoder_options(self) -> dict[str, str]:
        """For the software encoder."""
        options = dict(self.codec.options) | dict(self.codec.presets.get(self.settings.preset, {}))
        if self.crf is not None:
            options["crf"] = str(self.crf)
        return options | dict(self.codec.quality_options.get(self.settings.quality, {}))


def knows(encoder: str) -> bool:
    """Whether this PyAV brings an encoder of that name."""
    try:
        av.Codec(encoder, "w")
    except ValueError:  # av.codec.codec.UnknownCodecError
        return False
    return True


def video_codecs() -> list[str]:
    """The codecs that this PyAV can write, the most widely playable first."""
    return [name for name, codec in VIDEO_CODECS.items() if not codec.encoder or knows(codec.encoder)]


def audio_codecs() -> list[str]:
    """The codecs of sound that this PyAV can write."""
    return [name for name, codec in AUDIO_CODECS.items() if knows(codec.encoder)]


def _takes(encoder: str, pixels: str) -> bool:
    formats = av.Codec(encoder, "w").video_formats
    return formats is None or pixels in {known.name for known in formats}


def plan(settings: Settings, channels: int = 0) -> Plan:
    """Decide what was left to us, and refuse what does not go together. `channels` of the sound; 0: no sound.

    Raises:
        InputError: an unknown word, a codec that this PyAV lacks or that the container cannot hold, a bit depth or a
            quality that the codec does not have.
    """
    name = settings.codec
    _one_of("codec", name, VIDEO_CODECS)
    _one_of("quality", settings.quality, QUALITIES)
    _one_of("preset", settings.preset, PRESETS)
    codec = VIDEO_CODECS[name]
    if codec.encoder and not knows(codec.encoder):
        raise InputError(
            f"this PyAV has no encoder for {name}",
            expected=f"FFmpeg's {codec.encoder} in PyAV {av.__version__}",
            found=f"encoders for {', '.join(video_codecs())}",
            fix=f"choose another codec, or install a PyAV that brings {codec.encoder} (pip install -U av)",
        )
    container = codec.containers[0] if settings.container == "auto" else settings.container
    _one_of("container", container, CONTAINERS)
    if container not in codec.containers:
        others = [other for other, known in VIDEO_CODECS.items() if container in known.containers]
        raise InputError(
            f"{container} files cannot hold {name}",
            expected=f"for {name}: {' or '.join(codec.containers)}",
            found=container,
            fix=f'choose the container "auto", or for {container} the codec {" or ".join(others)}',
        )
    audio_name, audio = _audio(settings, codec, container, channels)
    return Plan(settings, name, codec, container, _bits(settings, name, codec), audio_name, audio, _crf(settings, name))


def _audio(settings: Settings, codec: VideoCodec, container: str, channels: int) -> tuple[str, AudioCodec | None]:
    if not channels or not codec.audio:
        return "", None
    name = settings.audio_codec
    if name == "auto":
        name = codec.audio if container in AUDIO_CODECS[codec.audio].containers else "opus"
    _one_of("audio_codec", name, AUDIO_CODECS)
    audio = AUDIO_CODECS[name]
    if not knows(audio.encoder):
        raise InputError(
            f"this PyAV has no encoder for {name}",
            expected=f"FFmpeg's {audio.encoder} in PyAV {av.__version__}",
            found=f"encoders for {', '.join(audio_codecs())}",
            fix="choose another audio_codec",
        )
    if container not in audio.containers:
        fitting = [other for other, known in AUDIO_CODECS.items() if container in known.containers]
        raise InputError(
            f"{container} files cannot hold {name} sound",
            expected=f"for {container}: {' or '.join(fitting)}",
            found=name,
            fix='choose the audio_codec "auto"',
        )
    if channels > audio.channels:
        raise InputError(
            f"{name} holds no more than {audio.channels} channels",
            expected=f"at most {audio.channels} channels",
            found=channels,
            fix="choose aac or opus, or mix the sound down to stereo",
        )
    return name, audio


def _bits(settings: Settings, name: str, codec: VideoCodec) -> int:
    bits = settings.bit_depth
    if len(codec.pixels) == 1 and bits == 8:  # the default: what the codec has
        return next(iter(codec.pixels))
    if bits not in codec.pixels or (codec.encoder and not _takes(codec.encoder, codec.pixels[bits])):
        having = [
            other
            for other, known in VIDEO_CODECS.items()
            if bits in known.pixels and knows(known.encoder) and _takes(known.encoder, known.pixels[bits])
        ]
        raise InputError(
            f"{name} has no {bits} bits a colour here",
            expected=f"8 bits for {name}",
            found=bits,
            fix=f"choose 8 bits, or for {bits} bits the codec {' or '.join(having)}",
        )
    return bits


def _crf(settings: Settings, name: str) -> int | None:
    codec = VIDEO_CODECS[name]
    if not codec.crf:
        return None
    if settings.crf is None:
        return codec.crf[settings.quality]
    low, high = sorted(codec.crf_range)
    if not low <= settings.crf <= high:
        raise InputError(
            f"the quality number is outside {name}'s scale",
            expected=f"{codec.crf_range[0]} (best) to {codec.crf_range[1]}",
            found=settings.crf,
            fix="give a number on the scale, or -1 to let the word decide",
        )
    return settings.crf


def _one_of(what: str, value: str, known: Mapping[str, object] | tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(
            f"unknown {what}",
            expected=" or ".join(known),
            found=value,
            fix=f"choose one of these for {what}",
        )
