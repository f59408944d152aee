"""HLWQDecodeSave on the tiny model's VAEs: the file of VAE Decode and Save, without the frames in memory."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import av
import pytest
import torch

from .conftest import joint_latent


@pytest.fixture(scope="module")
def vaes(load):
    _, vae, audio_vae, _ = load()
    return vae, audio_vae


@pytest.fixture
def node(pack, tmp_path, monkeypatch):
    saving = importlib.import_module(f"{pack.__name__}.nodes.saving")
    monkeypatch.setattr(saving.folder_paths, "get_output_directory", lambda: str(tmp_path))
    return importlib.import_module(f"{pack.__name__}.nodes.decode_save")


@pytest.fixture
def decoding(pack):
    return importlib.import_module(f"{pack.__name__}.nodes.decoding")


@pytest.fixture
def errors(pack):
    return importlib.import_module(f"{pack.__name__}.hlwq_core.errors")


def latent(frames: int = 4, height: int = 2, width: int = 3, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 128, frames, height, width, generator=torch.Generator().manual_seed(seed))


def run(node, samples, vae, **kwargs):
    choices = {"frame_rate": 24.0, "filename_prefix": "clip", "codec": "ffv1"} | kwargs
    with torch.inference_mode():
        return node.HLWQDecodeSave.execute({"samples": samples}, vae, **choices)


def frames_of(path) -> torch.Tensor:
    with av.open(str(path)) as container:
        return torch.stack([torch.from_numpy(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)])


def collected(decoding, vae, samples, steps, monkeypatch=None, free=None) -> torch.Tensor:
    """What `decode` hands on, with given steps."""
    parts: list[torch.Tensor] = []
    count = decoding._Count(lambda frames: parts.append(frames.float().clone()))
    with torch.inference_mode():
        decoding.core.make_room(vae, 0)
        decoding._decode(vae, samples, steps, count)
    return torch.cat(parts)


def whole(vae, samples) -> torch.Tensor:
    with torch.inference_mode():
        return vae.decode(samples)[0].float()


@pytest.mark.parametrize("frames", [1, 2, 7])
def test_the_same_bytes_as_decode_and_save(pack, node, vaes, tmp_path, frames):
    """Lossless, so that every pixel counts."""
    samples = latent(frames)
    result = run(node, samples, vaes[0])
    save = importlib.import_module(f"{pack.__name__}.nodes.save_audio_video").HLWQSaveAudioVideo
    save.execute(whole(vaes[0], samples), frame_rate=24.0, filename_prefix="other", codec="ffv1")
    ours, theirs = (frames_of(tmp_path / f"{name}_00001_.mkv") for name in ("clip", "other"))
    # On a CPU the pieces are smaller than core's, which can turn the last bit of a float.
    off = ours.int().sub(theirs.int()).abs()
    assert off.max() <= 1 and off.float().mean() < 1e-4
    assert ours.shape == (8 * frames - 7, 64, 96, 3)
    assert f"decoded in whole frames, up to {8 * frames} at a time" in result.ui["text"][0]
    assert result.args[0][0].get_components().images.shape == ours.shape


def test_sound_and_its_length(pack, node, vaes, tmp_path):
    media = importlib.import_module(f"{pack.__name__}.hlwq_core.media")
    samples = joint_latent(frames=4, size=2, audio=26)
    run(node, samples, vaes[0], codec="h264", audio_vae=vaes[1])
    info = media.probe(tmp_path / "clip_00001_.mp4")
    assert info.video.frames == 25 and info.audio.codec == "aac"
    assert abs(info.video.duration - info.audio.duration) < 1 / 24


def test_a_given_sound_takes_the_place_of_the_latents(pack, node, vaes, tmp_path):
    media = importlib.import_module(f"{pack.__name__}.hlwq_core.media")
    sound = {"waveform": torch.rand(1, 1, 30_000) - 0.5, "sample_rate": 16_000}
    run(node, joint_latent(), vaes[0], codec="h264", audio_vae=vaes[1], audio=sound)
    assert media.probe(tmp_path / "clip_00001_.mp4").audio.channels == 1


def test_batches_are_files(node, vaes, tmp_path):
    result = run(node, latent(2, batch=3), vaes[0])
    assert len(result.args[0]) == 3 and len(list(tmp_path.glob("*.mkv"))) == 3
    second = frames_of(tmp_path / "clip_00002_.mkv").float()
    expected = whole(vaes[0], latent(2, batch=3)[1:2]) * 255
    assert (second - expected).abs().max() <= 1


@pytest.mark.parametrize(("slices", "piece"), [(4, 1), (5, 4), (16, 32), (35, 1), (36, 1)])
def test_slices_are_exact(decoding, vaes, slices, piece):
    """However few frames go into the decoder at a time, and the very last alone: what is between them is kept, not guessed."""
    vae, samples = vaes[0], latent(36, 2, 3)
    expected = whole(vae, samples)
    frames = collected(decoding, vae, samples, decoding.Steps(slices, piece << 20))
    assert frames.shape == expected.shape
    assert (frames - expected).abs().max() < 3e-5
    # The decoder kept nothing of it.
    assert (whole(vae, samples) - expected).abs().max() == 0


def test_the_first_slice_of_one_frame(decoding, vaes):
    vae, samples = vaes[0], latent(3, 1, 1)
    frames = collected(decoding, vae, samples, decoding.Steps(1, 1 << 20))
    assert (frames - whole(vae, samples)).abs().max() < 3e-5


def test_how_far_a_frame_depends_on_others(vaes):
    """One latent frame changed: 13.5 on either side (docs/saving.md), what lies further away stays as it was."""
    vae, samples = vaes[0], latent(40, 1, 1)
    changed = samples.clone()
    changed[:, :, 20] += 5
    moved = (whole(vae, samples) - whole(vae, changed)).abs().flatten(1).amax(1).nonzero().flatten()
    first, last = int(moved[0]), int(moved[-1])
    assert 8 * (20 - 14) - 7 <= first < 8 * (20 - 4) and 8 * (20 + 4) < last <= 8 * (20 + 14)


def test_a_slice_is_no_larger_for_a_longer_video(decoding, vaes):
    vae = vaes[0]
    short, long = (decoding.choose(vae, (1, 128, frames, 32, 48), 10**15) for frames in (200, 40_000))
    assert short == long and short.frames < 200 and short.tile == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc, and glibc's heap")
def test_what_the_heap_keeps_is_given_back(decoding, vaes):
    """What was freed between things that live on stays the process's own, or its memory would grow from video to video."""

    def own() -> int:
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
        return 1024 * int(line.split()[1])

    empty = own()
    scattered = [bytearray(b"x" * 60_000) for _ in range(4000)]
    living = scattered[::50]
    del scattered
    before = own()
    if before - empty < 180 << 20:
        pytest.skip("this process's malloc keeps nothing")
    with torch.inference_mode():
        decoding.decode(vaes[0], latent(2), lambda frames: None)
    assert len(living) == 80 and before - own() > 120 << 20


@pytest.mark.parametrize(("frames", "window"), [(1, 4), (3, 4), (11, 4), (12, 8)])
def test_tiles_are_as_near_as_cores(decoding, vaes, frames, window):
    vae, samples = vaes[0], latent(frames, 4, 6)
    expected = whole(vae, samples)
    ours = collected(decoding, vae, samples, decoding.Steps(window, 0, 4))
    assert ours.shape == expected.shape
    with torch.inference_mode():
        cores = vae.decode_tiled(samples, tile_x=4, tile_y=4, overlap=1, tile_t=window + 4, overlap_t=4)[0]
    off, bound = (float((x.float() - expected).abs().mean()) for x in (ours, cores))
    assert off <= 1.3 * bound + 1e-4, f"{off:.5f}, core's tiles {bound:.5f}"


def test_smaller_steps_where_memory_is_short(decoding, vaes, monkeypatch):
    vae, shape = vaes[0], (1, 128, 181, 32, 48)
    monkeypatch.setattr(decoding.core, "chunk_bytes", lambda vae: 128 << 20)
    largest = decoding.choose(vae, shape, 10**15)
    need = decoding.needed(vae, largest, 32, 48)
    assert largest.piece == 128 << 20 and decoding.choose(vae, shape, need) == largest
    smaller = decoding.choose(vae, shape, need - 1)
    assert (smaller.piece, smaller.tile) == (64 << 20, 0) and smaller.frames < largest.frames
    assert decoding.choose(vae, shape, need * 3 // 4).tile == 0
    tiles = decoding.choose(vae, shape, need // 20)
    assert tiles.tile in decoding._TILES
    assert decoding.choose(vae, shape, need, tile=16).tile == 16


@pytest.mark.parametrize("after", [0, 10])
@pytest.mark.parametrize("until", [1, 3, 100])
def test_out_of_memory_goes_on_where_it_stopped(decoding, vaes, monkeypatch, after, until):
    """The card is full, at once or in the middle: smaller pieces from there, in the end tiles; no frame twice, none missing."""
    vae, samples = vaes[0], latent(7, 4, 5)
    parts: list[torch.Tensor] = []
    real = decoding.core.decode_into

    monkeypatch.setattr(decoding.core, "chunk_bytes", lambda vae: 128 << 20)
    tries: list[int] = []

    def fail(vae, part, take, count, piece):
        tries.append(piece)
        if len(tries) > until:
            return real(vae, part, take, count, piece)

        def limited(frames):
            room = after - sum(part.shape[0] for part in parts)
            if room > 0:
                take(frames[:room])
            if frames.shape[0] > room:
                raise torch.OutOfMemoryError("no room")

        return real(vae, part, limited, count, piece)

    monkeypatch.setattr(decoding.core, "decode_into", fail)
    said: list[str] = []
    with torch.inference_mode():
        told = decoding.decode(vae, samples, lambda f: parts.append(f.float().clone()), say=said.append)
    assert "because memory ran out" in told and said[-1] == told
    assert tries == [128 << 20, 32 << 20, 8 << 20, 4 << 20][: until + 1]
    assert ("tiles" in told) == (until == 100)
    frames, expected = torch.cat(parts), whole(vae, samples)
    assert frames.shape == expected.shape
    off = (frames - expected).abs()
    assert off.mean() < 0.1 if until == 100 else off.max() < 3e-5


def test_other_errors_are_not_memory(decoding, vaes, monkeypatch):
    def fail(*args):
        raise ValueError("something else")

    monkeypatch.setattr(decoding.core, "decode_into", fail)
    with pytest.raises(ValueError, match="something else"), torch.inference_mode():
        decoding.decode(vaes[0], latent(2), lambda frames: None)


@pytest.mark.parametrize("tile_size", [64, 128])
def test_the_users_tiles(node, vaes, tmp_path, tile_size):
    result = run(node, latent(2, 4, 6), vaes[0], tile_size=tile_size)
    assert f"in tiles of {tile_size} pixels" in result.ui["text"][0]
    assert frames_of(tmp_path / "clip_00001_.mkv").shape == (9, 128, 192, 3)


def test_cancel_ends_the_decoding_and_leaves_nothing(node, vaes, tmp_path, monkeypatch):
    import comfy.model_management as management

    monkeypatch.setattr(management, "interrupt_processing", True)

    class Bar:
        def __init__(self, total): ...

        def update_absolute(self, value):
            management.throw_exception_if_processing_interrupted()

    monkeypatch.setattr(node, "ProgressBar", Bar)
    with pytest.raises(management.InterruptProcessingException):
        run(node, latent(8), vaes[0])
    assert list(tmp_path.iterdir()) == []
    # The decoder kept nothing of it.
    monkeypatch.setattr(management, "interrupt_processing", False)
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(samples=torch.randn(1, 8, 26, 16)), "latent and VAE do not belong together"),
        (dict(samples=torch.randn(1, 64, 2, 2, 2)), "latent and VAE do not belong together"),
        (dict(vae="audio"), "a video VAE"),
        (dict(samples=latent(2), audio_vae="audio"), "no sound in this latent"),
        (dict(loop_count=2), "saved once"),
        (dict(codec="h265", samples=torch.randn(1, 128, 2, 1, 1)), "64 x 64"),
    ],
)
def test_refused_with_a_reason(node, errors, vaes, tmp_path, change, words):
    change = dict(change)
    if change.get("audio_vae"):
        change["audio_vae"] = vaes[1]
    vae = vaes[1] if change.pop("vae", None) else vaes[0]
    with pytest.raises(errors.InputError, match=words):
        run(node, change.pop("samples", latent(2)), vae, **change)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("codec", ["h264", "gif", "webp", "png"])
def test_other_formats(node, vaes, tmp_path, codec):
    result = run(node, latent(2), vaes[0], codec=codec, quality="best")
    assert len(list(tmp_path.iterdir())) == 1
    (video,) = result.args[0]
    images = video.get_components().images
    assert images.shape == (9, 64, 96, 3) and video.get_dimensions() == (96, 64)
    if codec in ("webp", "png"):
        assert (images * 255 - whole(vaes[0], latent(2)) * 255).abs().max() <= 1
        video.save_to(str(tmp_path / "again.mp4"))
        assert frames_of(tmp_path / "again.mp4").shape == images.shape
    assert "9 frames" in result.ui["text"][0]


def test_a_video_is_extended(pack, node, vaes, tmp_path):
    """The file begins with the earlier one, the repeated frames are left out, the sounds pass into each other."""
    media = importlib.import_module(f"{pack.__name__}.hlwq_core.media")
    sound = {"waveform": torch.full((1, 2, 48_000), 0.5), "sample_rate": 16_000}
    (earlier,) = run(node, latent(4), vaes[0], audio=sound, filename_prefix="first").args[0]
    other = {"waveform": torch.full((1, 1, 48_000), -0.25), "sample_rate": 16_000}
    run(node, latent(3, seed=1), vaes[0], audio=other, extends=earlier, overlap_frames=9)
    path = tmp_path / "clip_00001_.mkv"
    joined, first = frames_of(path), frames_of(tmp_path / "first_00001_.mkv")
    assert joined.shape[0] == 25 + 17 - 9
    assert torch.equal(joined[:25], first)
    expected = whole(vaes[0], latent(3, seed=1))[9:] * 255
    assert (joined[25:].float() - expected).abs().max() <= 1
    wave = media.read_sound(path, 16_000).waveform
    begin, end = round(16 / 24 * 16_000), round(25 / 24 * 16_000)
    assert wave[:, : begin - 100].sub(0.5).abs().max() < 1e-3 and wave[:, end + 100 :].add(0.25).abs().max() < 1e-3
    middle = wave[0, (begin + end) // 2]
    assert middle == pytest.approx((0.5 - 0.25) * 0.5**0.5, abs=0.01)
    assert abs(wave.shape[1] / 16_000 - 33 / 24) < 0.01


@pytest.mark.parametrize(
    ("other", "choices", "words"),
    [
        (dict(width=4), {}, "differs from the new frames"),
        ({}, dict(frame_rate=25.0), "differs from the new frames"),
        ({}, dict(overlap_frames=18), "overlap is longer"),
    ],
)
def test_what_cannot_be_extended(node, errors, vaes, tmp_path, other, choices, words):
    (earlier,) = run(node, latent(3), vaes[0], filename_prefix="first").args[0]
    with pytest.raises(errors.InputError, match=words):
        run(node, latent(3, **other), vaes[0], extends=earlier, **choices)
    assert len(list(tmp_path.iterdir())) == 1
