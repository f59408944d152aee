"""Pictures: a folder of PNG files in place of a video, a PNG beside one, and the workflow in a WebP."""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageSequence
from PIL.PngImagePlugin import PngInfo

from ..errors import MediaError
from .faults import told
from .formats import Plan
from .partial import Partial
from .pixels import to_bytes


class SequenceCoder:
    """Writes a folder of PNG pictures 00001.png, 00002.png, ..., the workflow in each."""

    note: str | None = None
    encoder = "png"

    def __init__(self, path: Path, plan: Plan, metadata: Mapping[str, Any]):
        self._path, self._plan, self._metadata = path, plan, metadata

    def converter(self) -> Callable[[torch.Tensor, int], bytes]:
        """For one thread: frames as files that `run` takes."""
        level = int(self._plan.encoder_options["compress_level"])

        def convert(frame: torch.Tensor, index: int) -> bytes:
            return png(frame, self._metadata, level, index)

        return convert

    def run(self, pictures: Iterator[bytes]) -> None:
        """Write all pictures.

        Raises:
            OSError: one could not be written.
        """
        self._path.mkdir(exist_ok=True)
        for number, data in enumerate(pictures, 1):
            (self._path / f"{number:05}.png").write_bytes(data)


def png(frame: torch.Tensor, metadata: Mapping[str, Any], level: int = 4, index: int = 0) -> bytes:
    """A frame [height, width, 3] as a PNG file, with the tags that ComfyUI reads."""
    info = PngInfo()
    for key, value in metadata.items():
        info.add_text(key, json.dumps(value))
    data = io.BytesIO()
    Image.fromarray(to_bytes(frame, index).cpu().numpy()).save(data, "PNG", pnginfo=info, compress_level=level)
    return data.getvalue()


def write_png(path: Path, frame: torch.Tensor, metadata: Mapping[str, Any]) -> None:
    """A frame as a PNG file at `path`, whole or not at all.

    Raises:
        MediaError: it could not be written.
    """
    partial = Partial(path, ".png")
    try:
        with told(path):
            partial.path.write_bytes(png(frame, metadata))
            os.replace(partial.path, path)
    finally:
        partial.path.unlink(missing_ok=True)
        partial.release()


def read_pictures(path: Path) -> torch.Tensor:
    """The frames of a folder of PNG files, or of an animated picture, float [frames, height, width, 3] in 0..1.

    Raises:
        MediaError: there is nothing to be read any more.
    """
    try:
        if path.is_dir():
            found = [_pixels(Image.open(file)) for file in sorted(path.glob("*.png"))]
        else:
            with Image.open(path) as image:
                found = [_pixels(frame) for frame in ImageSequence.Iterator(image)]
        return torch.stack(found)
    except (OSError, RuntimeError) as error:
        raise MediaError(
            "the saved pictures cannot be read",
            file=path,
            expected="the pictures as they were saved",
            found=error,
            fix="run the node that saves them again",
        ) from error


def _pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).float().div_(255)


def add_exif(path: Path, metadata: Mapping[str, Any]) -> None:
    """Put the workflow into an animated WebP, where ComfyUI looks for it: FFmpeg writes none.

    Source: RIFF container of WebP, https://developers.google.com/speed/webp/docs/riff_container.
    """
    exif = Image.Exif()
    # As core's SaveAnimatedWEBP: tag 0x0110 and those before 0x010F, each "name:JSON".
    tags = dict(metadata)
    if "prompt" in tags:
        exif[0x0110] = f"prompt:{json.dumps(tags.pop('prompt'))}"
    for number, (key, value) in enumerate(tags.items()):
        exif[0x010F - number] = f"{key}:{json.dumps(value)}"
    data = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = b"EXIF" + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
    with path.open("r+b") as file:
        head = file.read(21)
        if head[12:16] != b"VP8X":
            return
        file.seek(20)
        file.write(bytes([head[20] | 0x08]))
        size = file.seek(0, io.SEEK_END)
        file.write(chunk)
        file.seek(4)
        file.write(struct.pack("<I", size - 8 + len(chunk)))
