"""A video latent decoded piece by piece, in as much memory as there is: frames go on as they come."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .compat import vae as core

log = logging.getLogger("hlwq")

# What LTX-2.3's decoder needs at its peak, counted in its pieces, its latent pixels of a frame and of the frames that go in
# at once; an upper bound of what was counted for 25 to 1,441 frames of 256×256 to 1536×1024 in two sizes of pieces, and of what
# an H200 took for 121 frames in pieces of 4 to 128 MiB (benchmarks/results/decode_save.json).
_PIECES = 60
_FRAME_BYTES = 450_000  # for each latent pixel of a frame, a byte a number
_LEAST_BYTES = 1_100_000  # the same, however small the pieces are: a frame inside the decoder is no smaller
_LENGTH_BYTES = 2_300  # the same of all frames that go in at once
_SPARE = 1.1
_SMALLEST_PIECE = 4 << 20  # smaller ones save next to nothing: a frame inside the decoder is larger
_FEWEST = 4  # latent frames that go in at once
_TILE_OVERLAP = 2  # latent pixels at each side of a tile
_BLENDED = 2  # latent frames at each end of a window of tiles
_TILED_BYTES = 1 << 30  # frames of a window of tiles on the host
_TILES = (24, 16, 12, 8)  # latent pixels a side


@dataclass(frozen=True)
class Steps:
    """How a latent is decoded.

    Attributes:
        frames: latent frames that go into the decoder at a time, or that tiles have.
        piece: bytes of the pieces in the decoder; 0 with tiles, which are decoded one by one.
        tile: latent pixels a side; 0: whole frames.
    """

    frames: int
    piece: int
    tile: int = 0

    def describe(self, scale: int, pixels: int) -> str:
        """In a few words, for the user."""
        if self.tile:
            return f"decoded in tiles of {self.tile * pixels} pixels, {self.frames * scale} frames at a time"
        return f"decoded in whole frames, up to {self.frames * scale} at a time"


def whole_frames(vae: Any, shape: tuple[int, ...], piece: int) -> Steps:
    """Whole frames of a latent [1, channels, frames, height, width]; no more at a time than their first features fill a piece."""
    _, _, frames, height, width = shape
    if not core.can_slice(vae):
        return Steps(frames, piece)
    each = core.first_features(vae) * core.item_bytes(vae) * height * width
    # A CPU gains nothing by more, and its memory soon is what it will be for any length.
    room = piece // 16 if vae.device.type == "cpu" else piece
    return Steps(min(frames, max(_FEWEST, room // each)), piece)


def needed(vae: Any, steps: Steps, height: int, width: int) -> int:
    """Bytes of the device's memory for whole frames, or tiles, of so many latent pixels, at the peak."""
    pixels = height * width
    each = _FRAME_BYTES * pixels + _LENGTH_BYTES * pixels * steps.frames
    nbytes = _PIECES * (steps.piece or core.chunk_bytes(vae)) + core.item_bytes(vae) * each
    return int(_SPARE * max(nbytes, core.item_bytes(vae) * _LEAST_BYTES * pixels))


def choose(vae: Any, shape: tuple[int, ...], free: int, tile: int = 0) -> Steps:
    """The steps that fit into `free` bytes: whole frames, in smaller pieces where memory is short, else tiles.

    Args:
        shape: of the latent, [1, channels, frames, height, width].
        tile: latent pixels a side that the user wants; 0: ours to choose.
    """
    height, width = shape[3:]
    frames = _tiled_frames(vae, height, width)
    if tile or not core.streams(vae):
        return Steps(frames, 0, tile or max(_TILES))
    for piece in _sizes(core.chunk_bytes(vae)):
        steps = whole_frames(vae, shape, piece)
        if needed(vae, steps, height, width) <= free:
            return steps
    tile = next((t for t in _TILES if needed(vae, Steps(frames, 0, t), t, t) <= free), _TILES[-1])
    return Steps(frames, 0, tile)


def _sizes(largest: int) -> Iterator[int]:
    """Of pieces, each half of the one before."""
    while largest >= _SMALLEST_PIECE:
        yield largest
        largest //= 2


def _tiled_frames(vae: Any, height: int, width: int) -> int:
    """Latent frames of a window of tiles."""
    scale, pixels = core.scales(vae)
    # Core's tiling holds the frames twice: the sum and its weights, floats of three colours.
    frame = 2 * 4 * 3 * height * width * pixels * pixels * scale
    return max(4, min(16, _TILED_BYTES // frame))


def decode(
    vae: Any,
    latent: torch.Tensor,
    take: Callable[[torch.Tensor], None],
    tile: int = 0,
    say: Callable[[str], None] = log.info,
) -> str:
    """Decode a latent [1, channels, frames, height, width]; `take` is given frames [n, H, W, 3] in 0..1, in order.

    Returns:
        What was chosen, in words. Where memory runs out, smaller steps go on where the frames ended.
    """
    scale, pixels = core.scales(vae)
    shape = tuple(latent.shape)
    # What is asked for must be what is wanted most, or ComfyUI would not make room for it.
    wanted = choose(vae, shape, sys.maxsize, tile)
    height, width = (min(side, wanted.tile or side) for side in shape[3:])
    steps = choose(vae, shape, core.make_room(vae, needed(vae, wanted, height, width)), tile)
    told = steps.describe(scale, pixels)
    say(told)
    done = _Count(take)
    while True:
        try:
            _decode(vae, latent, steps, done)
            return told
        except Exception as error:
            smaller = _smaller(vae, shape, steps) if core.is_out_of_memory(error) else None
            if smaller is None:
                raise
        # The error held the tensors of the failed try until here.
        core.free_cache()
        steps = smaller
        told = f"{steps.describe(scale, pixels)}, because memory ran out"
        say(told)


def _smaller(vae: Any, shape: tuple[int, ...], steps: Steps) -> Steps | None:
    if not steps.tile and steps.piece > _SMALLEST_PIECE:
        return whole_frames(vae, shape, max(_SMALLEST_PIECE, steps.piece // 4))
    tiles = [t for t in _TILES if t < (steps.tile or max(_TILES) + 1)]
    return Steps(_tiled_frames(vae, *shape[3:]), 0, tiles[0]) if tiles else None


class _Count:
    """Hands frames on, each once: what comes again after a failed try is left out."""

    def __init__(self, take: Callable[[torch.Tensor], None]):
        self._take = take
        self.frames = 0

    def __call__(self, frames: torch.Tensor, first: int) -> None:
        """Frames of the video from number `first` on."""
        new = frames[max(0, self.frames - first) :]
        if new.shape[0]:
            self._take(new)
            self.frames += new.shape[0]


def _decode(vae: Any, latent: torch.Tensor, steps: Steps, done: _Count) -> None:
    if not steps.tile:
        position = 0

        def take(frames: torch.Tensor) -> None:
            nonlocal position
            done(frames, position)
            position += frames.shape[0]

        core.decode_into(vae, latent, take, steps.frames, steps.piece)
        return
    scale, _ = core.scales(vae)
    total = latent.shape[2]
    begin = 0
    pending: torch.Tensor | None = None  # the end of the last window, which is blended with the next
    while begin < total:
        end = min(total, begin + steps.frames)
        # A rest that is shorter than what is decoded beside it is done at once.
        if total - end <= _BLENDED:
            end = total
        if scale * end - scale + 1 <= done.frames:
            begin, pending = end, None
            continue
        low, high = max(0, begin - _BLENDED), min(total, end + _BLENDED)
        pending = _tiles(vae, latent[:, :, low:high], steps, scale * low, scale, end, pending, done)
        begin = end


def _first(latent_frame: int, scale: int) -> int:
    """The first frame that comes of a latent frame: the very first becomes one frame, all others `scale`."""
    return 0 if latent_frame == 0 else scale * (latent_frame - 1) + 1


def _tiles(
    vae: Any, part: torch.Tensor, steps: Steps, start: int, scale: int, end: int, pending: torch.Tensor | None, done: _Count,
) -> torch.Tensor | None:  # fmt: skip
    """A window by core's tiling; its beginning is blended with `pending`. Returns what is to be blended with the next."""
    tile = min(steps.tile, max(part.shape[3:]))
    frames = vae.decode_tiled(
        part, tile_x=tile, tile_y=tile, overlap=min(_TILE_OVERLAP, tile // 4), tile_t=part.shape[2] + 1, overlap_t=1
    )[0]
    if pending is not None:
        count = min(pending.shape[0], frames.shape[0])
        weight = (torch.arange(1, count + 1, device=frames.device) / (count + 1)).view(-1, 1, 1, 1).to(frames.dtype)
        frames[:count] = torch.lerp(pending[:count], frames[:count], weight)
    last = start + frames.shape[0]
    # Both windows have the frames from here on.
    shared = scale * (end - _BLENDED) if start + frames.shape[0] > _first(end, scale) else last
    shared = min(max(shared, start), last)
    done(frames[: shared - start], start)
    return frames[shared - start :].clone() if shared < last else None
