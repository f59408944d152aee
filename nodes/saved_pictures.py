"""Saved pictures as a VIDEO: ComfyUI reads neither an animated WebP nor a folder of PNG files."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

from comfy_api.latest import Input, InputImpl, Types

from ..hlwq_core.media.pictures import read_pictures


class SavedPictures(Input.Video):
    """An animated WebP or a folder of PNG files as a VIDEO without sound; it is read when somebody asks for its frames."""

    def __init__(self, path: Path, rate: Fraction):
        self._path, self._rate = path, rate

    def get_components(self) -> Types.VideoComponents:
        """The frames."""
        return Types.VideoComponents(images=read_pictures(self._path), audio=None, frame_rate=self._rate)

    def save_to(self, *args: Any, **kwargs: Any) -> None:
        """As any VIDEO."""
        self._read().save_to(*args, **kwargs)

    def as_trimmed(self, *args: Any, **kwargs: Any) -> Any:
        """As any VIDEO."""
        return self._read().as_trimmed(*args, **kwargs)

    def _read(self) -> Any:
        return InputImpl.VideoFromComponents(self.get_components())
