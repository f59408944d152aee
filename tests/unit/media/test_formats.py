"""Every codec in every container that is offered: coded, read back, tagged, as good as it says."""

from __future__ import annotations

import io
import json
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from hlwq_core import media
from hlwq_core.errors import InputError, MediaError
from hlwq_core.media import Settings, Sound, coders, formats, hardware, writing
from hlwq_core.media.pictures import png
from hlwq_core.media.pixels import Converter, to_bytes, to_words
from hlwq_core.media.sound import Shaping, shape

from .clips import decoded, mono, moving_square, tone

RATE = media.frame_rate(24)
TAGS = {"prompt": {"1": {"class_type": "A"}}, "workflow": {"nodes": [], "extra": "ü"}}
NAMES = {"h265": "hevc"}
PAIRS = [(name, container) for name, codec in formats.VIDEO_CODECS.items() for container in codec.containers]
FILMS = [(name, container) for name, container in PAIRS if formats.VIDEO_CODECS[name].audio]


def save(folder: Path, frames: torch.Tensor, sound: Sound | None = None, *, ping_pong: bool = False, **settings):
    chosen = Settings(**settings)
    ending = media.plan(chosen, sound.waveform.shape[0] if sound else 0).ending
    return media.write_video(folder / f"clip{ending}", frames, RATE, sound, chosen, metadata=TAGS, ping_pong=ping_pong)


def test_everything_is_offered_here() -> None:
    """PyAV's own wheels bring all of it; a PyAV that lacks some offers the rest (test_faults)."""
    assert media.video_codecs() == ["h264", "h265", "vp9", "av1", "prores", "ffv1", "gif", "webp", "png"]
    assert media.audio_codecs() == ["aac", "opus", "flac", "pcm", "mp3"]


@pytest.mark.parametrize(("codec", "container"), FILMS)
def test_picture_sound_and_workflow_survive(tmp_path: Path, codec: str, container: str) -> None:
    frames = moving_square()
    path = save(tmp_path, frames, tone(9 / 24), codec=codec, container=container, quality="best").path
    info = media.probe(path)
    assert info.video.codec == NAMES.get(codec, codec) and path.suffix == f".{container}"
    assert (info.video.frames, info.video.rate, info.video.width, info.video.height) == (9, 24, 96, 64)
    off = (decoded(path).float() - frames * 255).abs().mean()
    assert off < 4, f"picture off by {off:.1f} grey levels on average"
    tags = {key.lower(): value for key, value in info.metadata.items()}
    assert {key: json.loads(tags[key]) for key in TAGS} == TAGS
    with av.open(str(path)) as file:
        heard = np.concatenate([mono(frame) for frame in file.decode(audio=0)])
    middle = heard[len(heard) // 4 : len(heard) // 2]
    assert 0.3 < middle.std() < 0.4  # a sine of 0.5 has 0.354


@pytest.mark.parametrize(("codec", "container"), FILMS)
@pytest.mark.parametrize("audio_codec", formats.AUDIO_CODECS)
def test_every_sound_in_every_container_or_a_reason(
    tmp_path: Path, codec: str, container: str, audio_codec: str
) -> None:
    if container not in formats.AUDIO_CODECS[audio_codec].containers:
        with pytest.raises(InputError, match=f"{container} files cannot hold {audio_codec}"):
            media.plan(Settings(codec=codec, container=container, audio_codec=audio_codec), 2)
        return
    if codec not in ("h264", "vp9"):
        media.plan(Settings(codec=codec, container=container, audio_codec=audio_codec), 2)
        return  # what is in the picture is nothing to the sound
    path = save(
        tmp_path, moving_square(), tone(1), codec=codec, container=container, audio_codec=audio_codec, preset="fastest"
    ).path
    found = media.probe(path).audio.codec
    assert found == {"pcm": "pcm_s24le"}.get(audio_codec, audio_codec)


@pytest.mark.parametrize(("codec", "container"), [("prores", "mp4"), ("h264", "webm"), ("gif", "mp4"), ("vp9", "mov")])
def test_what_does_not_go_together(codec: str, container: str) -> None:
    with pytest.raises(InputError, match=f"{container} files cannot hold {codec}"):
        media.plan(Settings(codec=codec, container=container))


@pytest.mark.parametrize("codec", ["h264", "h265", "av1", "prores", "ffv1"])
def test_ten_bits(tmp_path: Path, codec: str) -> None:
    """A grey ramp finer than 8 bits keeps its steps."""
    ramp = (0.4 + 0.02 * torch.arange(512) / 512).view(1, 1, 512, 1).expand(2, 64, 512, 3)
    path = save(tmp_path, ramp, codec=codec, bit_depth=10, quality="best").path
    with av.open(str(path)) as file:
        frame = next(file.decode(video=0))
        assert max(part.bits for part in frame.format.components) == 10
        levels = frame.to_ndarray(format="gray10le")[32]
    # 0.02 of the range are 5 levels of 8 bits, 18 to 20 of 10 bits.
    assert len(set(levels.tolist())) >= 12


def test_bits_that_a_codec_does_not_have() -> None:
    with pytest.raises(InputError, match="gif has no 10 bits"):
        media.plan(Settings(codec="gif", bit_depth=10))


@pytest.mark.parametrize("codec", ["h264", "h265", "vp9", "av1", "prores"])
def test_colours_are_right_and_marked(tmp_path: Path, codec: str) -> None:
    """BT.709 in limited range, in the pixels as in the marks."""
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0], [0.5, 0.5, 0.5]])
    for number, colour in enumerate(colours):
        path = save(tmp_path, colour.expand(2, 64, 64, 3), codec=codec, quality="best").path
        with av.open(str(path)) as file:
            frame = next(file.decode(video=0))
            context = file.streams.video[0].codec_context
            assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
        step = 4 if frame.format.components[0].bits == 10 else 1
        y, u, v = (_middle(frame.planes[i], frame.format.components[i].bits) / step for i in range(3))
        r, g, b = colour.tolist()
        luma = 0.2126 * r + 0.7152 * g + 0.0722 * b
        expected = (16 + 219 * luma, 128 + 224 * (b - luma) / 1.8556, 128 + 224 * (r - luma) / 1.5748)
        assert np.allclose((y, u, v), expected, atol=2.5), (number, (y, u, v), expected)


def _middle(plane: av.VideoPlane, bits: int) -> float:
    values = np.frombuffer(plane, np.uint16 if bits > 8 else np.uint8)
    return float(np.median(values.reshape(plane.height, -1)[: plane.height, : plane.width]))


def test_lossless_is_lossless(tmp_path: Path) -> None:
    frames = torch.rand(3, 64, 96, 3)
    path = save(tmp_path, frames, codec="ffv1").path
    assert torch.equal(decoded(path), to_bytes(frames))


@pytest.mark.parametrize("codec", ["h264", "h265", "vp9", "av1", "prores", "webp"])
def test_qualities_go_down_and_a_number_takes_their_place(tmp_path: Path, codec: str) -> None:
    noise = torch.rand(24, 128, 192, 3, generator=torch.Generator().manual_seed(1))
    frames = (moving_square(24, 128, 192) + 0.05 * noise).clamp(0, 1)
    sizes = [save(tmp_path, frames, codec=codec, quality=q).path.stat().st_size for q in media.QUALITIES]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 1.5 * sizes[-1]
    if formats.VIDEO_CODECS[codec].crf:
        by_number = save(tmp_path, frames, codec=codec, crf=formats.VIDEO_CODECS[codec].crf["small"], quality="best")
        assert abs(by_number.path.stat().st_size - sizes[-1]) < 200
        with pytest.raises(InputError, match="outside"):
            media.plan(Settings(codec=codec, crf=64))


@pytest.mark.parametrize("codec", [name for name in formats.VIDEO_CODECS if formats.VIDEO_CODECS[name].presets])
def test_every_preset_is_known_to_its_encoder(tmp_path: Path, codec: str) -> None:
    for preset in media.PRESETS:
        assert save(tmp_path, moving_square(3), codec=codec, preset=preset).frames == 3


@pytest.mark.parametrize("codec", ["gif", "webp"])
@pytest.mark.parametrize("loops", [0, 3])
def test_animations(tmp_path: Path, codec: str, loops: int) -> None:
    """Read with Pillow, as a browser would: all frames, their true time, how often, the workflow in a WebP."""
    settings = Settings(codec=codec, loops=loops)
    path = tmp_path / f"clip.{codec}"
    written = media.write_video(path, moving_square(25), RATE, tone(1), settings, metadata=TAGS)
    assert "holds no sound" in str(written)
    with Image.open(written.path) as image:
        assert image.n_frames == 25
        assert image.info.get("loop", 0) == loops
        times = []
        for index in range(25):
            image.seek(index)
            image.load()
            times.append(image.info["duration"])
            off = np.abs(np.asarray(image.convert("RGB"), float) - moving_square(25)[index].numpy() * 255).mean()
            assert off < 8
        assert abs(sum(times[:24]) - 1000) <= 10
        if codec == "webp":
            exif = image.getexif()
            assert json.loads(exif[0x0110].removeprefix("prompt:")) == TAGS["prompt"]
            assert exif[0x010F].startswith("workflow:")
    if codec == "webp":
        data = written.path.read_bytes()
        assert struct.unpack("<I", data[4:8])[0] + 8 == len(data)


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    frames = moving_square(12)
    written = save(tmp_path, frames, codec="png")
    files = sorted(written.path.iterdir())
    assert [file.name for file in files] == [f"{n:05}.png" for n in range(1, 13)]
    for file, frame in zip(files, frames, strict=True):
        with Image.open(file) as image:
            assert np.array_equal(np.asarray(image), to_bytes(frame).numpy())
            assert json.loads(image.text["workflow"]) == TAGS["workflow"]


def test_forth_and_back_and_again(tmp_path: Path) -> None:
    frames = torch.linspace(0, 1, 5).view(5, 1, 1, 1).expand(5, 64, 64, 3)
    written = save(tmp_path, frames, tone(1), ping_pong=True, loops=1, codec="ffv1")
    shown = decoded(written.path)[:, 0, 0, 0].tolist()
    assert torch.tensor(shown).sub(torch.tensor([0, 64, 128, 191, 255, 191, 128, 64] * 2)).abs().max() <= 1
    assert abs(media.probe(written.path).audio.duration - 16 / 24) < 0.01
    with av.open(str(written.path)) as file:
        heard = np.concatenate([mono(frame) for frame in file.decode(audio=0)])
    assert np.array_equal(heard[:8000], heard[8000:16000])


# ---- pixels ----------------------------------------------------------------------------------------------------------


def test_bytes_are_the_nearest() -> None:
    levels = torch.arange(256) / 255
    assert torch.equal(to_bytes(levels.view(1, 1, 256, 1))[0, 0, :, 0], torch.arange(256, dtype=torch.uint8))
    values = torch.linspace(-0.5, 1.5, 9999).view(1, 1, -1, 1)
    exact = values.double().mul(255).clamp(0, 255)
    assert (to_bytes(values)[..., :1].double() - exact).abs().max() <= 0.5 + 1e-4
    assert (
        to_bytes(torch.full((1, 4, 4, 3), 1e9)).eq(255).all() and to_bytes(torch.full((1, 4, 4, 3), -1e9)).eq(0).all()
    )


def numbers(picture: av.VideoFrame) -> np.ndarray:
    """What its planes hold, one after the other; PyAV 17 makes no array of yuv420p10le."""
    found = []
    for plane in picture.planes:
        word = np.uint16 if picture.format.name.endswith("10le") else np.uint8
        rows = np.frombuffer(plane, word).reshape(plane.height, -1)
        found.append(rows[:, : plane.width].reshape(-1))
    return np.concatenate(found)


@pytest.mark.parametrize(("bits", "pixel_format"), [(8, "yuv420p"), (10, "yuv420p10le"), (10, "gbrp10le")])
def test_what_crosses_the_bus_is_what_is_coded(bits: int, pixel_format: str) -> None:
    """A card's frames come as bytes or words: the same pictures as of floats, and no larger than that."""
    frames = torch.rand(2, 64, 96, 3) * 1.2 - 0.1
    moved = (to_bytes if bits == 8 else to_words)(frames)
    assert moved.element_size() == (1 if bits == 8 else 2)
    convert = Converter(pixel_format, bits)
    for frame, other in zip(frames, moved, strict=True):
        pictures = [numbers(convert(frame, 0)), numbers(convert(other, 0))]
        assert np.array_equal(*pictures) and pictures[0].std() > 10


@pytest.mark.parametrize("shape", [(2, 66, 98, 3), (2, 66, 98, 1), (2, 66, 98, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_any_frames_become_pictures(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    frames = torch.rand(shape).to(dtype)
    picture = Converter("rgb24", 8)(frames[1], 1)
    expected = frames[1].float().expand(66, 98, 3) if shape[-1] == 1 else frames[1, ..., :3].float()
    assert np.abs(picture.to_ndarray(format="rgb24") - expected.numpy() * 255).max() <= 0.51


def test_pictures_do_not_share_memory() -> None:
    """The buffer that a converter uses again is not what it hands out."""
    converter = Converter("yuv444p", 8)
    first = converter(torch.zeros(64, 64, 3), 0)
    converter(torch.ones(64, 64, 3), 1)
    assert first.to_ndarray(format="rgb24").max() <= 1


# ---- sound -----------------------------------------------------------------------------------------------------------


def test_shaping() -> None:
    sound = Sound(torch.ones(2, 48_000), 24_000)
    fitted, added = shape(sound, Fraction(3), Shaping(volume=0.5))
    assert fitted.waveform.shape == (2, 72_000) and added == 1.0
    assert fitted.waveform[:, :48_000].eq(0.5).all() and fitted.waveform[:, 48_000:].eq(0).all()
    late, added = shape(sound, Fraction(3), Shaping(start=-0.5))
    assert late.waveform[:, :12_000].eq(0).all() and late.waveform[:, 12_000:60_000].eq(1).all() and added == 0.5
    trimmed, added = shape(Sound(torch.arange(48_000.0)[None], 24_000), Fraction(1), Shaping(start=0.25))
    assert trimmed.waveform[0, 0] == 6_000 and added == -0.75
    faded, _ = shape(sound, Fraction(2), Shaping(fade_in=0.5, fade_out=1.0))
    wave = faded.waveform[0]
    assert wave[0] == 0 and wave[6_000] == pytest.approx(0.5, abs=1e-3) and wave[12_000:24_000].eq(1).all()
    assert wave[36_000] == pytest.approx(0.5, abs=1e-3) and wave[-1].abs() < 1e-6
    assert sound.waveform.eq(1).all(), "the node's input is not ours to change"
    assert shape(sound, Fraction(1), Shaping(fade_in=9.0, fade_out=9.0))[0].waveform.shape == (2, 24_000)


# ---- hardware --------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "refusal", lambda encoder: f"{encoder} does not open here (no device)")


def test_without_hardware_the_cpu_codes_and_says_so_if_asked(tmp_path: Path, no_hardware: None) -> None:
    quiet = save(tmp_path, moving_square(), hardware="auto")
    assert quiet.encoder == "libx264" and not quiet.notes
    for family in hardware.FAMILIES:
        written = save(tmp_path, moving_square(), hardware=family)
        assert written.encoder == "libx264"
        assert f"h264_{family} does not open here (no device): coded by the CPU" in str(written)


def test_a_name_in_the_list_is_no_proof() -> None:
    """On a machine without any of them, each that is listed is refused with a reason; with one, it codes."""
    for family in hardware.families():
        encoder = hardware.FAMILIES[family]["h264"]
        reason = hardware.refusal(encoder)
        assert reason is None or encoder in reason


def test_hardware_that_opens_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libx264 under another name stands in for a card's encoder."""
    monkeypatch.setattr(hardware, "FAMILIES", {"nvenc": {"h264": "libx264"}})
    monkeypatch.setattr(hardware, "families", lambda: ["nvenc"])
    monkeypatch.setattr(hardware, "options", lambda family, plan: {"crf": "20"})
    written = save(tmp_path, moving_square(), tone(1), hardware="auto")
    with av.open(str(written.path)) as file:
        assert file.streams.video[0].codec_context.pix_fmt in ("nv12", "yuv420p")
    off = (decoded(written.path).float() - moving_square() * 255).abs().mean()
    assert off < 5


def test_hardware_that_refuses_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "FAMILIES", {"nvenc": {"h264": "libx265"}})  # which takes no such options
    monkeypatch.setattr(hardware, "families", lambda: ["nvenc"])
    monkeypatch.setattr(hardware, "options", lambda family, plan: {"preset": "no such"})
    monkeypatch.setattr(hardware, "refusal", lambda encoder: None)
    written = save(tmp_path, moving_square(), hardware="auto")
    assert written.encoder == "libx264" and "refused 96 x 64" in str(written)


def test_hardware_that_fails_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "FAMILIES", {"nvenc": {"h264": "libx264"}})
    monkeypatch.setattr(hardware, "families", lambda: ["nvenc"])
    monkeypatch.setattr(hardware, "options", lambda family, plan: {"crf": "20"})

    class Failing:
        def encode(self, frame: object) -> None:
            raise av.error.ExternalError(0, "out of sessions")

    monkeypatch.setattr(coders.AVCoder, "_video", lambda coder, container: Failing())
    with pytest.raises(MediaError, match=r'libx264 encoder refused[\s\S]*set hardware to "off"'):
        save(tmp_path, moving_square(), hardware="auto")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", hardware.FAMILIES)
def test_options_of_hardware_are_complete(family: str) -> None:
    for codec in hardware.FAMILIES[family]:
        for preset in media.PRESETS:
            options = hardware.options(family, media.plan(Settings(codec=codec, preset=preset)))
            assert options and all(isinstance(value, str) for value in options.values())


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("codec", media.video_codecs())
def test_few_frames(tmp_path: Path, codec: str, frames: int) -> None:
    for _ in range(3):  # libx265 failed one time in ten
        assert save(tmp_path, moving_square(frames), codec=codec).frames == frames


def test_a_png_loads_on_the_canvas() -> None:
    image = Image.open(io.BytesIO(png(torch.rand(8, 8, 3), TAGS)))
    assert json.loads(image.text["prompt"]) == TAGS["prompt"]


def test_frame_rates() -> None:
    exact = {23.976: Fraction(24000, 1001), 29.97: Fraction(30000, 1001), 59.94: Fraction(60000, 1001)}
    exact |= {
        24.0: Fraction(24),
        25.0: Fraction(25),
        50.0: Fraction(50),
        7.5: Fraction(15, 2),
        47.952: Fraction(48000, 1001),
    }
    for value, fraction in exact.items():
        assert media.frame_rate(value) == fraction
    for value in (0, -1, 1001, float("nan")):
        with pytest.raises(InputError):
            writing.frame_rate(value)
