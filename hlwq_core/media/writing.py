"""Frames that come one after the other into one file, with its sound; whole at its name or not there at all.

Frames are converted by a few threads and coded by one more, so that whoever makes them need not wait for either.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from .coders import AVCoder
from .faults import told
from .formats import Plan, Settings, plan
from .names import Place, move_new, unfinished_name
from .partial import Partial
from .pictures import SequenceCoder
from .pixels import check_frames, to_bytes, to_words
from .sound import Shaping, Sound, check_samples, check_sound, shape

_AHEAD = 8  # frames that may wait to be coded
_CONVERTERS = max(1, min(4, (os.cpu_count() or 2) - 1))
_PATIENCE = 0.1  # seconds between looks at whether the work is to end


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        path: of the file, or of the folder of pictures.
        frames: their number, at `rate` a second.
        added: seconds of silence added to the sound, or cut from it (negative).
        encoder: FFmpeg's name.
        notes: lines for the user.
    """

    path: Path
    frames: int
    rate: Fraction
    added: float
    encoder: str
    notes: tuple[str, ...] = ()

    @property
    def duration(self) -> float:
        """Seconds."""
        return float(self.frames / self.rate)

    def __str__(self) -> str:
        text = f"{self.frames} frames at {float(self.rate):g} a second, {self.duration:.3f} s"
        frame = 1 / self.rate
        if self.added > frame:
            text += f"; the sound was {self.added:.3f} s shorter and ends in silence"
        elif -self.added > frame:
            text += f"; the sound was {-self.added:.3f} s longer and is cut"
        return "; ".join((text, *self.notes))


def frame_rate(value: float) -> Fraction:
    """Frames a second as a fraction that containers can hold.

    23.976, 29.97 and the like are the rates of television as people write them: 24000/1001, 30000/1001.
    """
    if not 0 < value <= 1000:
        raise InputError(
            "the frame rate is out of range",
            expected="more than 0, at most 1000 frames a second",
            found=value,
            fix="give the rate that the frames were made for; LTX's is 24 or 25",
        )
    whole = round(value * 1.001)
    television = Fraction(whole * 1000, 1001)
    if whole >= 10 and abs(value - television) < 0.005:
        return television
    return Fraction(value).limit_denominator(1001)


def check_size(width: int, height: int, chosen: Plan) -> None:
    """Refuse a picture that the plan's codec cannot take.

    Raises:
        InputError: odd sides, or too small.
    """
    codec = chosen.codec
    if codec.even and (width % 2 or height % 2):
        raise InputError(
            f"the width and height of {chosen.name} must be even",
            expected="even numbers",
            found=f"{width} x {height}",
            fix="scale or crop the frames first (LTX makes multiples of 32), or choose ffv1, gif, webp or png",
        )
    if min(width, height) < codec.smallest:
        raise InputError(
            f"the {chosen.name} encoder cannot code so small a picture",
            expected=f"at least {codec.smallest} x {codec.smallest} pixels",
            found=f"{width} x {height}",
            fix="choose h264 or vp9, or make a larger picture",
        )


def check_rate(rate: Fraction, chosen: Plan) -> None:
    """Refuse frames that come more quickly than the plan's container can say.

    Raises:
        InputError: a GIF of more than 100 frames a second.
    """
    if chosen.container == "gif" and rate > 100:
        raise InputError(
            "a GIF cannot be played that quickly",
            expected="at most 100 frames a second: it counts time in hundredths of a second",
            found=f"{float(rate):g}",
            fix="choose webp, or leave out frames and give a lower frame_rate",
        )


class _GivenUp(Exception):
    """Ends the coding thread: what it wrote is thrown away."""


class Writer:
    """Writes one video as its frames come.

    Use it as a context manager: what leaves it by an exception leaves no file (or, with `keep_unfinished`, one that
    plays up to there). Call `finish` at the end.
    """

    def __init__(
        self,
        place: Place | Path,
        chosen: Plan,
        size: tuple[int, int],
        frames: int,
        rate: Fraction,
        sound: Sound | None = None,
        *,
        shaping: Shaping | None = None,
        metadata: Mapping[str, Any] | None = None,
        on_frame: Callable[[int], None] | None = None,
        repeats: int = 1,
    ):
        """
        Args:
            place: where the file goes; a Path is overwritten, a Place never overwrites.
            chosen: how, see `formats.plan`.
            size: width and height of the frames.
            frames: how many will come; the sound is cut or padded to their length.
            sound: of one of the `repeats`, all alike.
            on_frame: called in the caller's thread with the number of frames coded; what it raises ends the work.

        Raises:
            InputError: the codec cannot take the size, the rate or the sound.
        """
        check_size(*size, chosen)
        check_rate(rate, chosen)
        self._rate, self._count = rate, frames
        self._place, self._chosen = place, chosen
        self._added = 0.0
        notes = []
        if sound is not None:
            check_sound(sound)
            if chosen.audio is None:
                notes.append(f"{chosen.name} holds no sound: it is left out")
                sound = None
        if sound is not None:
            sound, self._added = shape(sound, Fraction(frames, repeats) / rate, shaping)
            check_samples(sound)  # a volume can be what makes them too loud
            if repeats > 1:
                wave = sound.waveform.repeat(1, repeats)
                sound = shape(Sound(wave, sound.rate), frames / rate)[0]
        self._on_frame = on_frame
        first = place if isinstance(place, Path) else place.first(chosen.ending)
        self._target = first
        self._hold: Partial | None = None
        if chosen.settings.keep_unfinished:
            self._partial = first.with_name(unfinished_name(first.name, chosen.ending))
        else:
            self._hold = Partial(first, chosen.ending)
            self._partial = self._hold.path
        try:
            self._coder: Any = (
                AVCoder(self._partial, chosen, size, frames, rate, sound, metadata or {})
                if chosen.codec.encoder
                else SequenceCoder(self._partial, chosen, metadata or {})
            )
        except BaseException:
            self._remove()
            raise
        if self._coder.note:
            notes.append(self._coder.note)
        self._notes = tuple(notes)
        self._coded, self._given = 0, 0
        self._error: BaseException | None = None
        self._ending: str | None = None  # "abandon" or "keep"
        self._queue: queue.Queue[Future | None] = queue.Queue(_AHEAD)
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(_CONVERTERS, "hlwq-pixels")
        self._thread = threading.Thread(target=self._code, name="hlwq-coding", daemon=True)
        self._thread.start()

    # -- the coding thread

    def _pictures(self) -> Iterator[Any]:
        while True:
            try:
                future = self._queue.get(timeout=_PATIENCE)
            except queue.Empty:
                if self._ending == "keep":
                    return
                if self._ending == "abandon":
                    raise _GivenUp from None
                continue
            if self._ending == "abandon":
                raise _GivenUp
            if future is None:
                return
            yield future.result()
            self._coded += 1

    def _code(self) -> None:
        try:
            with torch.inference_mode():
                self._coder.run(self._pictures())
        except _GivenUp:
            pass
        except BaseException as error:
            self._error = error

    def _convert(self, frame: torch.Tensor, index: int) -> Any:
        converter = getattr(self._local, "converter", None)
        if converter is None:
            converter = self._local.converter = self._coder.converter()
        with torch.inference_mode():
            return converter(frame, index)

    # -- the caller's thread

    def write(self, frames: torch.Tensor) -> None:
        """Hand over the next frames [n, height, width, 3], float in 0..1 or uint8; waits while too many are on the way.

        Raises:
            InputError: NaN in a frame.
            MediaError: the disk is full, the folder not writable, or an encoder failed.
        """
        if frames.device.type != "cpu":
            # Bytes are a quarter of what would have to cross the bus, words half of it.
            frames = (to_bytes if self._chosen.bits == 8 else to_words)(frames, self._given).cpu()
        for frame in frames:
            future = self._pool.submit(self._convert, frame, self._given)
            self._given += 1
            while True:
                self._look()
                try:
                    self._queue.put(future, timeout=_PATIENCE)
                    break
                except queue.Full:
                    continue

    def _look(self) -> None:
        """Report progress, and raise what the coding thread met."""
        if self._error is not None:
            keep = self._chosen.settings.keep_unfinished and self._coded > 0
            with told(self._target, self._partial if keep else None):
                raise self._error
        if self._on_frame is not None:
            self._on_frame(self._coded)

    def finish(self) -> Written:
        """Wait for the last frame, and give the file its name.

        Raises:
            MediaError, InputError: as `write`.
        """
        while self._thread.is_alive():
            self._look()
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=_PATIENCE)
                break
        while self._thread.is_alive():
            self._look()
            self._thread.join(_PATIENCE)
        self._look()
        with told(self._target):
            self._name_it()
        self._pool.shutdown()
        return Written(self._target, self._coded, self._rate, self._added, self._coder.encoder, self._notes)

    def _name_it(self) -> None:
        if isinstance(self._place, Path):
            if self._partial.is_dir() and self._place.is_dir():
                shutil.rmtree(self._place)
            os.replace(self._partial, self._place)
            return
        for path in self._place.paths(self._chosen.ending):
            try:
                move_new(self._partial, path)
            except FileExistsError:  # another server was quicker
                continue
            self._target = path
            return

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        keep = self._chosen.settings.keep_unfinished and self._coded > 0
        if kind is not None:
            self._ending = "keep" if keep else "abandon"
        elif self._thread.is_alive():
            self._ending = "abandon"
        self._thread.join()
        self._pool.shutdown(cancel_futures=True)
        if kind is None or not keep:
            self._remove()
        elif self._hold is not None:
            self._hold.release()

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            if self._partial.is_dir():
                shutil.rmtree(self._partial)
            else:
                self._partial.unlink(missing_ok=True)
        if self._hold is not None:
            self._hold.release()


def write_video(
    path: Place | str | os.PathLike[str],
    frames: torch.Tensor,
    rate: Fraction,
    sound: Sound | None = None,
    settings: Settings | None = None,
    *,
    shaping: Shaping | None = None,
    ping_pong: bool = False,
    metadata: Mapping[str, Any] | None = None,
    on_frame: Callable[[int], None] | None = None,
) -> Written:
    """Write frames and sound to one file, beside its place first, so that no half file is ever found there.

    Args:
        path: overwritten if it is a path; a Place is not.
        frames: float [frames, height, width, 3] in 0..1.
        sound: cut or padded with silence to the video's length.
        settings: codec, quality and the like.
        ping_pong: play the frames forth and back, without showing the first and the last twice.
        metadata: tags, stored as JSON the way ComfyUI does.
        on_frame: called with the number of frames coded; what it raises ends the work.

    Raises:
        InputError: see `check`; NaN in a frame.
        MediaError: the disk is full, the folder not writable, or an encoder failed.
    """
    settings = settings or Settings()
    chosen = check(frames, sound, settings)
    order, repeats = playing(frames.shape[0], chosen, ping_pong)
    place = path if isinstance(path, Place) else Path(path)
    size = (frames.shape[2], frames.shape[1])
    with Writer(
        place, chosen, size, len(order) * repeats, rate, sound,
        shaping=shaping, metadata=metadata, on_frame=on_frame, repeats=repeats,
    ) as writer:  # fmt: skip
        if ping_pong or repeats > 1:
            for index in order * repeats:
                writer.write(frames[index : index + 1])
        else:
            writer.write(frames)
        return writer.finish()


def playing(frames: int, chosen: Plan, ping_pong: bool = False) -> tuple[list[int], int]:
    """The frames in the order in which they are coded, and how often all of them are."""
    order = list(range(frames))
    if ping_pong:
        order += order[-2:0:-1]
    # A GIF or a WebP says itself how often it is played.
    return order, 1 if chosen.container in ("gif", "webp") else chosen.settings.loops + 1


def check(frames: torch.Tensor, sound: Sound | None, settings: Settings) -> Plan:
    """Refuse what cannot be coded, before anything is written.

    Raises:
        InputError: no frames, a wrong shape, a size that the codec cannot take, a sound without samples, settings that
            do not go together.
    """
    check_frames(frames)
    chosen = plan(settings, sound.waveform.shape[0] if sound is not None and sound.waveform.ndim == 2 else 0)
    check_size(frames.shape[2], frames.shape[1], chosen)
    if sound is not None:
        check_sound(sound)
    return chosen
