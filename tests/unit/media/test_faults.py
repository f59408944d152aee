"""What goes wrong is called what it is, and leaves nothing at the file's name."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch

from hlwq_core import media
from hlwq_core.errors import HLWQError, InputError, MediaError
from hlwq_core.media import Place, Settings, Sound, coders, formats, names, pictures, writing

from .clips import decoded, moving_square, tone

RATE = media.frame_rate(24)


def save(path: Path | Place, frames: torch.Tensor | None = None, sound: Sound | None = None, **settings) -> object:
    return media.write_video(path, moving_square() if frames is None else frames, RATE, sound, Settings(**settings))


def place(folder: Path, name: str = "clip", counter: int = 1) -> Place:
    return Place(folder, name, counter)


def test_a_sound_of_1e15(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"too loud for any encoder[\s\S]*1e\+15"):
        save(tmp_path / "clip.mp4", sound=Sound(torch.full((2, 9000), 1e15), 24_000))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("codec", media.audio_codecs())
@pytest.mark.parametrize(("volume", "words"), [(1e9, "too loud"), (float("nan"), "NaN or infinite samples")])
def test_a_volume_that_makes_it_so(tmp_path: Path, codec: str, volume: float, words: str) -> None:
    """FFmpeg's AAC never comes back from such samples: they must not get there."""
    with pytest.raises(InputError, match=words):
        media.write_video(
            tmp_path / "clip.mkv", moving_square(), RATE, tone(1), Settings(container="mkv", audio_codec=codec),
            shaping=media.Shaping(volume=volume),
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("codec", media.audio_codecs())
def test_ten_times_the_loudest_that_is_taken(tmp_path: Path, codec: str) -> None:
    """What the nodes let through is coded."""
    sound = Sound(torch.linspace(-100, 100, 9000).repeat(2, 1), 24_000)
    settings = Settings(container="mkv", audio_codec=codec)
    shaping = media.Shaping(volume=10)
    assert media.write_video(tmp_path / "c", moving_square(), RATE, sound, settings, shaping=shaping).frames == 9


@pytest.mark.parametrize("rate", [0, -1, 2**31, 48_000.5])
def test_rates_of_sound_that_are_none(tmp_path: Path, rate: float) -> None:
    with pytest.raises(InputError, match="no sample rate"):
        save(tmp_path / "clip.mp4", sound=Sound(torch.zeros(2, 100), rate))  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [0, 3, 4, 5, 7, 8])
def test_channels_that_no_encoder_is_given(tmp_path: Path, channels: int) -> None:
    with pytest.raises(InputError, match="channels"):
        save(tmp_path / "clip.mp4", sound=Sound(torch.zeros(channels, 1000), 48_000))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rate", [0.5, 1, 7.3, 59.94, 119.88, 240])
@pytest.mark.parametrize("codec", media.video_codecs())
def test_odd_rates(tmp_path: Path, codec: str, rate: float) -> None:
    def write() -> media.Written:
        return media.write_video(
            tmp_path / "clip", moving_square(3), media.frame_rate(rate), tone(1), Settings(codec=codec)
        )

    if codec == "gif" and rate > 100:
        with pytest.raises(InputError, match=r"cannot be played that quickly[\s\S]*100 frames"):
            write()
        assert list(tmp_path.iterdir()) == []
    else:
        assert write().frames == 3


def test_silence_before_a_sound_takes_no_more_than_the_video() -> None:
    sound, added = media.shape(Sound(torch.ones(2, 1000), 48_000), Fraction(1, 8), media.Shaping(start=-36_000))
    assert sound.waveform.shape == (2, 6000) and not sound.waveform.any() and added == -1000 / 48_000


def test_a_png_beside_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        write(path, data[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(MediaError, match="disk is full"):
        pictures.write_png(tmp_path / "clip.png", torch.rand(8, 8, 3), {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("which", "who"), [("VideoStream", "libx264"), ("AudioStream", "aac")])
def test_an_encoder_that_refuses_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str, who: str
) -> None:
    """Told as the encoder's refusal, in its own words, not as a fault of the folder."""
    fill = coders.AVCoder._video if which == "VideoStream" else coders.AVCoder._audio

    class Refusing:
        def encode(self, frame: object) -> None:
            raise av.error.ArgumentError(errno.EINVAL, "Input contains (near) NaN/+-Inf")

    def refusing(coder: coders.AVCoder, container: object) -> Refusing:
        fill(coder, container)
        return Refusing()

    monkeypatch.setattr(coders.AVCoder, fill.__name__, refusing)
    with pytest.raises(MediaError, match=rf"the {who} encoder refused[\s\S]*near") as caught:
        save(tmp_path / "clip.mp4", sound=tone(1))
    assert "folder" not in str(caught.value) and "choose another" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [(32, 32), (48, 96), (62, 64)])
@pytest.mark.parametrize("codec", ["h265", "av1"])
def test_too_small_pictures(tmp_path: Path, codec: str, size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=rf"{codec} encoder cannot code so small[\s\S]*64 x 64"):
        save(tmp_path / "clip.mp4", torch.rand(3, *size, 3), codec=codec)


def test_the_smallest_that_are_taken_are_coded(tmp_path: Path) -> None:
    for codec in media.video_codecs():
        side = formats.VIDEO_CODECS[codec].smallest
        written = save(tmp_path / f"{codec}.any", torch.rand(3, side, side, 3), codec=codec)
        assert written.frames == 3, codec


def test_a_codec_that_this_pyav_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = formats.knows
    monkeypatch.setattr(formats, "knows", lambda encoder: encoder != "libsvtav1" and known(encoder))
    assert "av1" not in media.video_codecs()
    with pytest.raises(InputError, match=r"this PyAV has no encoder for av1[\s\S]*libsvtav1"):
        save(tmp_path / "clip.mp4", codec="av1")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(MediaError, match="cannot be written to"):
            save(tmp_path / "clip.mp4")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_folder_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """As `test_a_read_only_folder`, for whoever runs the tests as root."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(coders.av, "open", refuse)
    with pytest.raises(MediaError, match=r"cannot be written to[\s\S]*right to write"):
        save(tmp_path / "clip.mp4")


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on file sizes")
@pytest.mark.parametrize(
    "settings", ["", "codec='png'", "codec='gif'", "container='mkv'", "codec='webp'", "keep_unfinished=True"]
)
def test_a_full_disk(tmp_path: Path, settings: str) -> None:
    """A limit on the file size stands in for it: the write fails half way, in the encoder's own thread."""
    code = f"""
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import torch
from hlwq_core import media
from hlwq_core.errors import MediaError
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    media.write_video("clip.any", torch.rand(30, 128, 128, 3), media.frame_rate(24),
                      settings=media.Settings(quality="best", {settings}))
except MediaError as error:
    print(error)
    sys.exit(3)
"""
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.returncode == 3, done.stdout + done.stderr
    for word in ("disk is full", "clip.any", "expected: ", "found: ", "what to do: "):
        assert word in done.stdout
    left = [path.name for path in tmp_path.iterdir()]
    assert [name for name in left if "unfinished" not in name] == []


class Stop(BaseException):
    """As ComfyUI's Cancel: no Exception."""


def stop_after(frames: int):
    def on_frame(count: int) -> None:
        if count >= frames:
            raise Stop

    return on_frame


@pytest.mark.parametrize("codec", ["h264", "vp9", "gif", "webp", "png"])
def test_cancel_leaves_nothing(tmp_path: Path, codec: str) -> None:
    with pytest.raises(Stop):
        media.write_video(
            tmp_path / "clip", moving_square(40), RATE, tone(2), Settings(codec=codec), on_frame=stop_after(5)
        )
    assert list(tmp_path.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hlwq-coding")]


@pytest.mark.parametrize("container", ["mp4", "mkv", "mov"])
def test_cancel_keeps_what_plays_if_asked(tmp_path: Path, container: str) -> None:
    settings = Settings(container=container, keep_unfinished=True)
    with pytest.raises(Stop):
        media.write_video(place(tmp_path), moving_square(90), RATE, tone(4), settings, on_frame=stop_after(60))
    (left,) = tmp_path.iterdir()
    assert left.name.startswith("clip_00001_.unfinished-") and left.suffix == f".{container}"
    info = media.probe(left)
    assert 60 <= info.video.frames < 90
    assert abs(info.video.duration - info.audio.duration) < 0.1


def test_a_killed_process_leaves_what_plays_if_asked(tmp_path: Path) -> None:
    code = """
import os, torch
from hlwq_core import media
rate = media.frame_rate(24)
settings = media.Settings(keep_unfinished=True, preset="fastest")
place = media.Place(__import__("pathlib").Path("."), "clip", 1)
with media.Writer(place, media.plan(settings), (64, 64), 480, rate) as writer:
    writer.write(torch.rand(400, 64, 64, 3))
    while writer._coded < 380:
        pass
    os._exit(9)
"""
    root = Path(__file__).resolve().parents[3]
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, timeout=120, env=os.environ | {"PYTHONPATH": str(root)})
    (left,) = tmp_path.iterdir()
    with av.open(str(left)) as container, contextlib.suppress(av.error.InvalidDataError):  # where it was cut off
        shown = 0
        for _ in container.decode(video=0):
            shown += 1
    assert shown >= 240


@pytest.mark.parametrize("length", [200, 240])
def test_long_names_are_written(tmp_path: Path, length: int) -> None:
    for settings in ({}, {"keep_unfinished": True}, {"codec": "png"}):
        written = save(place(tmp_path, "n" * length), **settings)
        assert written.path.exists()


@pytest.mark.parametrize("name", ["n" * 250, "ü" * 125])
def test_names_too_long(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"name is too long[\s\S]*250 bytes"):
        names.check_prefix(f"video/{name}")
    with pytest.raises(HLWQError, match="name is too long"):
        save(tmp_path / f"{name}_00001_.mp4")
    assert list(tmp_path.iterdir()) == []


def test_two_servers_with_one_prefix(tmp_path: Path) -> None:
    """Both looked for the next number before either wrote."""
    kinds = [{}, {}, {"keep_unfinished": True}, {"codec": "png"}, {"codec": "png"}]
    failed: list[BaseException] = []

    def run(settings: dict) -> None:
        try:
            save(place(tmp_path), **settings)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(settings,)) for settings in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    videos = sorted(path.name for path in tmp_path.glob("*.mp4"))
    assert videos == ["clip_00001_.mp4", "clip_00002_.mp4", "clip_00003_.mp4"]
    folders = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    assert [len(list(folder.iterdir())) for folder in folders] == [9, 9]
    assert not list(tmp_path.glob(".*")) and not list(tmp_path.glob("*unfinished*"))


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(names.os, "link", refuse)
    (tmp_path / "clip_00001_.mp4").write_bytes(b"taken")
    written = save(place(tmp_path))
    assert written.path.name == "clip_00002_.mp4"
    assert (tmp_path / "clip_00001_.mp4").read_bytes() == b"taken"
    assert decoded(written.path).shape[0] == 9


def test_nan_in_a_late_frame(tmp_path: Path) -> None:
    frames = moving_square(20)
    frames[13, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match="frame 13 holds NaN"):
        save(tmp_path / "clip.mp4", frames)
    assert list(tmp_path.iterdir()) == []


def test_coding_runs_beside_the_caller(tmp_path: Path) -> None:
    """Frames that wait are few, however many come."""
    taken = []

    class Watched(torch.Tensor):
        pass

    frames = moving_square(60)
    with media.Writer(tmp_path / "clip.mp4", media.plan(Settings()), (96, 64), 60, RATE) as writer:
        for frame in frames:
            writer.write(frame[None])
            taken.append(writer._given - writer._coded)
        writer.finish()
    assert max(taken) <= writing._AHEAD + 2 + writing._CONVERTERS
