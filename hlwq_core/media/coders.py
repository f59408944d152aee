"""Pictures and sound into a container, by PyAV: what the coding thread does."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import torch

from . import hardware
from .faults import refusing
from .formats import FFMPEG_FORMATS, Plan
from .pictures import add_exif
from .pixels import Converter
from .sound import LAYOUTS, Sound

# What counts time in its own units: GIF in hundredths of a second, WebP in thousandths.
_CLOCKS = {"gif": Fraction(1, 100), "webp": Fraction(1, 1000)}
_BT709 = 1  # AVCOL_PRI_BT709, AVCOL_TRC_BT709 and AVCOL_SPC_BT709 alike
_LIMITED_RANGE = 1
# SVT-AV1 writes its settings to stderr, past FFmpeg's log, unless this says: errors only.
os.environ.setdefault("SVT_LOG", "1")
# libx265 gives fewer frames than it may reorder times that were never set.
_FEW = 8
_PLAY_ANYWHERE = {"h265": "hvc1"}  # players on Apple's systems want this tag, in MP4 and MOV
# Seconds between pictures that a player can begin at, where the file must play though it was never finished.
_FRAGMENT = 2


class AVCoder:
    """Writes one file with PyAV.

    Attributes:
        note: a line for the user, where something else was done than was asked for; or None.
        encoder: FFmpeg's name of the encoder that is used.
    """

    def __init__(self, path: Path, plan: Plan, size: tuple[int, int], frames: int, rate: Fraction, sound: Sound | None,
                 metadata: Mapping[str, Any]):  # fmt: skip
        self._path, self._plan, self._size, self._rate = path, plan, size, rate
        self._frames, self._sound, self._metadata = frames, sound, metadata
        self.encoder = plan.codec.encoder
        self._family, self.note = hardware.choose(plan)
        if self._family is not None:
            self._family, self.note = self._open_for_real(self._family)
        if self._family is not None:
            self.encoder = hardware.FAMILIES[self._family][plan.name]
        self._pixels = plan.pixels if self._family is None else hardware.pixels(plan)
        self._clock = _CLOCKS.get(plan.container, 1 / rate)

    def converter(self) -> Converter:
        """For one thread: frames as pictures that `run` takes."""
        return Converter(self._pixels, self._plan.bits)

    def _open_for_real(self, family: str) -> tuple[str | None, str | None]:
        """Whether the family's encoder takes this size and these options too; else a line that says why not."""
        encoder = hardware.FAMILIES[family][self._plan.name]
        context: Any = av.CodecContext.create(encoder, "w")
        context.width, context.height = self._size
        context.pix_fmt, context.time_base, context.framerate = hardware.pixels(self._plan), 1 / self._rate, self._rate
        context.options = hardware.options(family, self._plan)
        try:
            context.open()
        except (av.FFmpegError, OSError, ValueError) as error:
            return None, f"{encoder} refused {self._size[0]} x {self._size[1]} ({error}): coded by the CPU"
        return family, None

    def run(self, pictures: Iterator[av.VideoFrame]) -> None:
        """Code all pictures, and the sound beside them, and close the file.

        Raises:
            Refused: an encoder did not take what it was given.
            OSError, av.FFmpegError: the file could not be written.
        """
        with contextlib.ExitStack() as stack:
            target: Any = str(self._path)
            if not self._faststart:
                # FFmpeg says nothing when the last bytes of fragments find no room; Python's files do. Faststart has to
                # open the file again by its name, and notices.
                target = stack.enter_context(self._path.open("wb"))
            name = FFMPEG_FORMATS.get(self._plan.container, self._plan.container)
            container = av.open(target, "w", format=name, options=self._muxing())
            try:
                self._fill(container, pictures)
            except BaseException:
                # The trailer of a file that is thrown away, or whose disk is full, is of no use.
                with contextlib.suppress(Exception):
                    container.close()
                raise
            container.close()
        if self._plan.container == "webp" and self._metadata:
            add_exif(self._path, self._metadata)

    @property
    def _faststart(self) -> bool:
        return self._plan.container in ("mp4", "mov") and not self._plan.settings.keep_unfinished

    def _muxing(self) -> dict[str, str]:
        if self._plan.container in _CLOCKS:
            return {"loop": str(self._plan.settings.loops)}
        if self._plan.container not in ("mp4", "mov"):
            return {}
        # use_metadata_tags keeps the workflow's tags, faststart lets a browser play before the whole file has come.
        # Fragments play up to where the file ends; delay_moov lets the sound's priming be known in the header.
        way = "faststart" if self._faststart else "frag_keyframe+delay_moov+default_base_moof"
        return {"movflags": f"use_metadata_tags+{way}"}

    def _fill(self, container: Any, pictures: Iterator[av.VideoFrame]) -> None:
        for key, value in self._metadata.items():
            container.metadata[key] = value if isinstance(value, str) else json.dumps(value)
        video = self._video(container)
        audio = self._audio(container)
        name = f"the {self.encoder} encoder"
        advice = "choose another codec, or another size" if self._family is None else 'set hardware to "off"'
        coded = 0
        for picture in pictures:
            picture.pts, picture.time_base = round(coded / self._rate / self._clock), self._clock
            with refusing(name, advice):
                packets = video.encode(picture)
            container.mux(packets)
            coded += 1
            # Sound goes in beside its pictures, so that a player need not search the file for it.
            if audio is not None:
                self._encode_sound(container, audio, (coded - 1) / self._rate, coded / self._rate)
        with refusing(name, advice):
            packets = video.encode(None)
        container.mux(packets)
        if audio is not None:
            with refusing(f"the {self._plan.audio_name} encoder", "choose another audio_codec"):
                packets = audio.encode(None)
            container.mux(packets)

    def _video(self, container: Any) -> Any:
        plan = self._plan
        with refusing(f"the {self.encoder} encoder", "choose another codec"):
            video = container.add_stream(self.encoder, rate=self._rate)
        video.width, video.height = self._size
        video.pix_fmt = self._pixels
        video.time_base = self._clock
        if self._family is not None:
            video.options = hardware.options(self._family, plan)
        else:
            video.options = plan.encoder_options
            if plan.name == "h265" and self._frames <= _FEW:
                video.options = video.options | {"x265-params": "log-level=error:bframes=0"}
        context = video.codec_context
        if plan.name in ("vp9", "av1") and self._family is None:
            context.bit_rate = 0  # constant quality, no bit rate to aim at
        if plan.name in _PLAY_ANYWHERE and plan.container in ("mp4", "mov"):
            context.codec_tag = _PLAY_ANYWHERE[plan.name]
        if plan.settings.keep_unfinished:
            context.gop_size = max(1, round(_FRAGMENT * self._rate))
        if self._pixels.startswith(("yuv", "nv12", "p010")):
            # Without these marks players guess the colours by the picture's height.
            context.color_primaries = context.color_trc = context.colorspace = _BT709
            context.color_range = _LIMITED_RANGE
        with refusing(f"the {self.encoder} encoder", "choose another codec, or another size"):
            context.open(strict=False)
        return video

    def _audio(self, container: Any) -> Any:
        plan, sound = self._plan, self._sound
        if sound is None or plan.audio is None:
            return None
        rates = plan.audio.rates
        rate = sound.rate if not rates or sound.rate in rates else 48_000
        with refusing(f"the {plan.audio_name} encoder", "choose another audio_codec"):
            audio = container.add_stream(plan.audio.encoder, rate=rate, layout=LAYOUTS[sound.waveform.shape[0]])
            if plan.audio.bit_rates:
                audio.bit_rate = plan.audio.bit_rates[plan.settings.quality]
            if plan.audio.sample_format:
                audio.codec_context.format = plan.audio.sample_format
        return audio

    def _encode_sound(self, container: Any, stream: Any, start: Fraction, end: Fraction) -> None:
        sound = self._sound
        assert sound is not None
        first, last = round(start * sound.rate), round(end * sound.rate)
        wave = sound.waveform[:, first:last].detach().to(device="cpu", dtype=torch.float32).contiguous()
        if not wave.shape[1]:
            return
        frame = av.AudioFrame.from_ndarray(wave.numpy(), format="fltp", layout=LAYOUTS[wave.shape[0]])
        frame.sample_rate, frame.pts, frame.time_base = sound.rate, first, Fraction(1, sound.rate)
        with refusing(f"the {self._plan.audio_name} encoder", "choose another audio_codec"):
            packets = stream.encode(frame)
        container.mux(packets)
