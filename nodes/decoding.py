"""A video latent decoded piece by piece, in as much memory as there is: frames go on as they come."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .compat import vae as core

log = logging.getLogger("hlwq")

# What LTX-2.3's decoder needs at its peak, counted in its chunks, its latent pixels of a frame and of all frames; an upper
# bound of what was counted for 25 to 1,441 frames of 256×256 to 1536×1024 in both sizes of chunks.
_CHUNKS = 60
_FRAME_BYTES = 450_000  # for each latent pixel of a frame, a byte a number
_LENGTH_BYTES = 2_300  # the same of the whole length
_SPARE = 1.1
_TILE_OVERLAP = 2  # latent pixels at each side of a tile
_BLENDED = 2  # latent frames at each end of a window of tiles
_TILED_BYTES = 1 << 30  # frames of a window of tiles on the host
_TILES = (24, 16, 12, 8)  # latent pixels a side


@dataclass(frozen=True)
class Steps:
    """How a latent is decoded.

    Attributes:
        window: latent frames at a time, without what is decoded beside them.
        context: latent frames decoded beside a window, at each end.
        tile: latent pixels a side; 0: whole frames.
    """

    window: int
    context: int
    tile: int

    def describe(self, frames: int, scale: int, pixels: int) -> str:
        """In a few words, for the user."""
        if self.tile:
            return f"decoded in tiles of {self.tile * pixels} pixels, {self.window * scale} frames at a time"
        if self.window >= frames:
            return "decoded in whole frames, in one pass"
        return f"decoded in whole frames, {self.window * scale} at a time"


def needed(vae: Any, frames: int, height: int, width: int) -> int:
    """Bytes of the device's memory for whole frames of a latent, at the peak."""
    pixels = height * width
    each = _FRAME_BYTES * pixels + _LENGTH_BYTES * pixels * frames
    return int(_SPARE * (_CHUNKS * core.chunk_bytes(vae) + core.item_bytes(vae) * each))


def choose(vae: Any, shape: tuple[int, ...], free: int, tile: int = 0) -> Steps:
    """The steps that fit into `free` bytes: whole frames in one pass, else in windows, else tiles.

    Args:
        shape: of the latent, [1, channels, frames, height, width].
        tile: latent pixels a side that the user wants; 0: ours to choose.
    """
    _, _, frames, height, width = shape
    if not core.streams(vae):
        return Steps(_tiled_window(vae, height, width), _BLENDED, tile or max(_TILES))
    if not tile:
        if needed(vae, frames, height, width) <= free:
            return Steps(frames, 0, 0)
        # Beyond its reach a window knows nothing of the rest: with it on both sides the frames are the same.
        reach = core.reach(vae)
        window = frames // 2
        while window >= 4 * reach:
            if needed(vae, window + 2 * reach, height, width) <= free:
                return Steps(window, reach, 0)
            window //= 2
        tile = next((t for t in _TILES if needed(vae, 16, t, t) <= free), _TILES[-1])
    return Steps(_tiled_window(vae, height, width), _BLENDED, tile)


def _tiled_window(vae: Any, height: int, width: int) -> int:
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
    frames = latent.shape[2]
    scale, pixels = core.scales(vae)
    wanted = needed(vae, min(frames, 16), tile, tile) if tile else needed(vae, *latent.shape[2:])
    steps = choose(vae, tuple(latent.shape), core.make_room(vae, wanted), tile)
    told = steps.describe(frames, scale, pixels)
    say(told)
    done = _Count(take)
    while True:
        try:
            _decode(vae, latent, steps, done)
            return told
        except Exception as error:
            smaller = _smaller(vae, latent, steps) if core.is_out_of_memory(error) else None
            if smaller is None:
                raise
        # The error held the tensors of the failed try until here.
        core.free_cache()
        steps = smaller
        told = f"{steps.describe(frames, scale, pixels)}, because memory ran out"
        say(told)


def _smaller(vae: Any, latent: torch.Tensor, steps: Steps) -> Steps | None:
    tiles = [t for t in _TILES if t < (steps.tile or max(_TILES) + 1)]
    return Steps(_tiled_window(vae, *latent.shape[3:]), _BLENDED, tiles[0]) if tiles else None


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
    scale, _ = core.scales(vae)
    total = latent.shape[2]
    begin = 0
    pending: torch.Tensor | None = None  # the end of the last window, which is blended with the next
    while begin < total:
        end = min(total, begin + steps.window)
        # A rest that is shorter than what is decoded beside it is done at once.
        if total - end <= steps.context:
            end = total
        if scale * end - scale + 1 <= done.frames:
            begin, pending = end, None
            continue
        low, high = max(0, begin - steps.context), min(total, end + steps.context)
        part = latent[:, :, low:high]
        if not steps.tile:
            _stream(vae, part, scale * low, _first(begin, scale), _first(end, scale), done)
        else:
            pending = _tiles(vae, part, steps, scale * low, scale, begin, end, pending, done)
        begin = end


def _first(latent_frame: int, scale: int) -> int:
    """The first frame that comes of a latent frame: the very first becomes one frame, all others `scale`."""
    return 0 if latent_frame == 0 else scale * (latent_frame - 1) + 1


def _stream(vae: Any, part: torch.Tensor, start: int, begin: int, end: int, done: _Count) -> None:
    """Frames `begin` to `end` of the video, from a part of the latent whose first frame is number `start`."""
    position = start

    def take(frames: torch.Tensor) -> None:
        nonlocal position
        first = max(begin - position, 0)
        last = min(end - position, frames.shape[0])
        if first < last:
            done(frames[first:last], position + first)
        position += frames.shape[0]

    core.decode_into(vae, part, take)


def _tiles(
    vae: Any, part: torch.Tensor, steps: Steps, start: int, scale: int, begin: int, end: int,
    pending: torch.Tensor | None, done: _Count,
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
    shared = scale * (end - steps.context) if start + frames.shape[0] > _first(end, scale) else last
    shared = min(max(shared, start), last)
    done(frames[: shared - start], start)
    return frames[shared - start :].clone() if shared < last else None
