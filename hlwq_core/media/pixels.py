"""Frames as bytes, where they are: on the card before they cross the bus, on the CPU in one pass."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from PIL import Image

from ..errors import InputError

_BT709 = 1  # AVCOL_PRI_BT709 and AVCOL_TRC_BT709
_SAFE = 1e6  # beyond this the quick way could overflow


def check_frames(frames: torch.Tensor) -> None:
    """Refuse what are not frames.

    Raises:
        InputError: a wrong shape, or none of them.
    """
    if frames.ndim != 4 or frames.shape[-1] not in (1, 3, 4):
        raise InputError(
            "these are not frames",
            expected="[frames, height, width, 3]",
            found=list(frames.shape),
            fix="connect the IMAGE of a VAE decode node",
        )
    if frames.shape[0] == 0:
        raise InputError(
            "there are no frames to save",
            expected="at least one frame",
            found=list(frames.shape),
            fix="check the node before this one",
        )


def to_bytes(frames: torch.Tensor, first: int = 0) -> torch.Tensor:
    """Float frames [..., height, width, 3] in 0..1 as uint8 on the same device, rounded. `first`: number of the first.

    Raises:
        InputError: NaN or infinite values.
    """
    pixels = frames[..., :3].detach()
    if pixels.dtype == torch.uint8:
        return pixels.contiguous()
    pixels = pixels.float()
    if pixels.shape[-1] == 1:
        pixels = pixels.expand(*pixels.shape[:-1], 3)
    low, high = (float(value) for value in pixels.aminmax())
    if not -_SAFE < low <= high < _SAFE:  # NaN compares false
        _refuse_infinite(pixels, first)
        pixels = pixels.clamp(0, 1)
    if pixels.device.type == "cpu":
        # One pass where multiplying, adding, clamping and converting are four, each as slow as the memory.
        quantized = torch.quantize_per_tensor(pixels.contiguous(), 1 / 255, 0, torch.quint8)
        return quantized.int_repr()
    return pixels.mul(255).add_(0.5).clamp_(0, 255).to(torch.uint8).contiguous()


def to_words(frames: torch.Tensor, first: int = 0) -> torch.Tensor:
    """Float frames as `to_bytes`, but 16 bits a colour: those of a uint16 in an int16, which every device knows."""
    if frames.dtype == torch.int16:
        return frames
    pixels = frames[..., :3].detach().float()
    if frames.dtype == torch.uint8:
        pixels = pixels.div(255)
    if pixels.shape[-1] == 1:
        pixels = pixels.expand(*pixels.shape[:-1], 3)
    _refuse_infinite(pixels, first)
    return pixels.clamp(0, 1).mul(65535).add_(0.5).to(torch.int32).to(torch.int16)


def _refuse_infinite(pixels: torch.Tensor, first: int) -> None:
    finite = torch.isfinite(pixels)
    if finite.all():
        return
    if pixels.ndim == 4:
        index = int((~finite).flatten(1).any(1).nonzero()[0])
        pixels, finite, first = pixels[index], finite[index], first + index
    raise InputError(
        f"frame {first} holds NaN or infinite values",
        expected="finite values",
        found=f"{int((~finite).sum())} of {pixels.numel()} that are not",
        fix="the model or the VAE overflowed: try another precision, or HLWQ Verify on the checkpoint",
    )


class Converter:
    """Frames of one size as FFmpeg's pictures, BT.709 and limited range. For one thread: buffers are used again."""

    def __init__(self, pixel_format: str, bits: int):
        self._format, self._bits = pixel_format, bits
        self._reformatter = VideoReformatter()
        self._source: Any = None

    def __call__(self, frame: torch.Tensor, index: int) -> av.VideoFrame:
        """A picture from a frame [height, width, 3], float in 0..1 or bytes, on any device."""
        deep = self._bits > 8
        pixels = (to_words if deep else to_bytes)(frame, index).cpu().numpy()
        if deep:
            pixels = pixels.view(np.uint16)
        height, width, _ = pixels.shape
        name = "rgb48le" if deep else "rgb24"
        if self._source is None:
            self._source = av.VideoFrame(width, height, name)
        if self._format == "pal8":
            # A palette of its own for every frame, with the error spread over the neighbours.
            image = Image.fromarray(pixels).quantize(256, dither=Image.Dither.FLOYDSTEINBERG)
            palette = np.full((256, 4), 255, np.uint8)
            colours = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
            palette[: len(colours), 1:] = colours  # alpha, red, green, blue
            pair: Any = (np.asarray(image), palette)
            return av.VideoFrame.from_ndarray(pair, format="pal8")
        plane = self._source.planes[0]
        rows = np.frombuffer(plane, np.uint16 if deep else np.uint8).reshape(height, -1)
        rows[:, : 3 * width] = pixels.reshape(height, -1)
        if self._format in ("bgr0", "bgra", "gbrp10le"):
            return self._reformatter.reformat(self._source, format=self._format, threads=1)
        return self._reformatter.reformat(
            self._source,
            format=self._format,
            dst_colorspace=Colorspace.ITU709,
            dst_color_primaries=_BT709,  # ProRes keeps the marks in its pictures
            dst_color_trc=_BT709,
            interpolation=Interpolation.BILINEAR,
            threads=1,
        )
