"""What the nodes that save videos have in common: their inputs, where a file goes, what it carries, what is shown."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import InputImpl, io, ui

from ..hlwq_core import media
from ..hlwq_core.errors import HLWQError, InputError
from ..hlwq_core.media import hardware
from ..hlwq_core.media.pictures import write_png
from . import compat

log = logging.getLogger("hlwq")

# Core's nodes that make a latent of a length and a size.
_ROUNDING = ("EmptyLTXVLatentVideo", "LTXVImgToVideo")
WORKFLOW = ("in the file", "in the file and a PNG", "nowhere")


def advance(progress: Any, before: int, done: int) -> None:
    """Move a bar of ComfyUI to the frames of this file, after those of the files before."""
    progress.update_absolute(before + done)


def file_inputs() -> list[io.Input]:
    """Name, codec and quality: the inputs that a person looks at."""
    return [
        io.String.Input(
            "filename_prefix",
            default="video/HLWQ",
            tooltip="Folder and name inside ComfyUI's output folder; a number and the ending are added. "
            "%date:yyyy-MM-dd%, %width%, %Seed.noise_seed% and the like are filled in.",
        ),
        io.Combo.Input(
            "codec",
            options=media.video_codecs(),
            default="h264",
            tooltip="h264 plays everywhere; h265, vp9 and av1 make smaller files and are slower to write. prores and "
            "ffv1 are for editing; gif, webp and png (a folder of pictures) hold no sound.",
        ),
        io.Combo.Input(
            "quality",
            options=list(media.QUALITIES),
            default="high",
            tooltip="Constant quality: best is near lossless and large, small is for sending. "
            "Sets the sound's bit rate too (256 to 96 kbit/s).",
        ),
        io.Combo.Input(
            "audio_codec",
            options=["auto", *media.audio_codecs()],
            default="auto",
            tooltip="auto: aac, which plays everywhere, or what the container needs. opus sounds better at low bit "
            "rates; flac and pcm lose nothing.",
        ),
    ]


def advanced_inputs() -> list[io.Input]:
    """What few people change; all of it optional, so that older workflows stay as they were."""
    return [
        io.Combo.Input(
            "container",
            options=["auto", *media.CONTAINERS],
            default="auto",
            optional=True,
            advanced=True,
            tooltip="auto: what is usual for the codec, mp4 for most. mkv holds everything.",
        ),
        io.Combo.Input(
            "preset",
            options=list(media.PRESETS),
            default="balanced",
            optional=True,
            advanced=True,
            tooltip="Time against size, at about the same look.",
        ),
        io.Int.Input(
            "crf",
            default=-1,
            min=-1,
            max=63,
            optional=True,
            advanced=True,
            tooltip="Quality as a number on the encoder's own scale, in place of the word: less is better and larger. "
            "-1: the word counts.",
        ),
        io.Combo.Input(
            "bit_depth",
            options=["8", "10"],
            default="8",
            optional=True,
            advanced=True,
            tooltip="Bits a colour. 10 has no bands in skies; h265, av1, prores and ffv1 play it, h264 rarely.",
        ),
        io.Combo.Input(
            "hardware",
            options=["auto", "off", *hardware.families()],
            default="auto",
            optional=True,
            advanced=True,
            tooltip="auto: an encoder in the graphics card where one really works, else the CPU.",
        ),
        io.Int.Input(
            "loop_count",
            default=0,
            min=0,
            max=100,
            optional=True,
            advanced=True,
            tooltip="How often the video is played again. 0: once; a GIF or WebP then plays for ever.",
        ),
        io.Float.Input(
            "audio_volume",
            default=1.0,
            min=0.0,
            max=10.0,
            step=0.05,
            optional=True,
            advanced=True,
            tooltip="Factor of the sound: 0.5 is half as strong, 0 is silence.",
        ),
        io.Float.Input(
            "audio_start",
            default=0.0,
            min=-3600.0,
            max=36000.0,
            step=0.01,
            optional=True,
            advanced=True,
            tooltip="Seconds of the sound to leave out at its beginning; below 0: silence before it.",
        ),
        io.Float.Input(
            "audio_fade_in",
            default=0.0,
            min=0.0,
            max=600.0,
            step=0.1,
            optional=True,
            advanced=True,
            tooltip="Seconds in which the sound comes up.",
        ),
        io.Float.Input(
            "audio_fade_out",
            default=0.0,
            min=0.0,
            max=600.0,
            step=0.1,
            optional=True,
            advanced=True,
            tooltip="Seconds in which the sound goes down at the end of the video.",
        ),
        io.Boolean.Input(
            "save_output",
            default=True,
            optional=True,
            advanced=True,
            tooltip="Off: a preview in ComfyUI's temp folder, gone when ComfyUI starts again.",
        ),
        io.Combo.Input(
            "workflow",
            options=list(WORKFLOW),
            default=WORKFLOW[0],
            optional=True,
            advanced=True,
            tooltip="Where the workflow is kept. A PNG beside the video shows its first frame and loads on the canvas.",
        ),
        io.Boolean.Input(
            "keep_unfinished",
            default=False,
            optional=True,
            advanced=True,
            tooltip="When saving fails or is cancelled, keep what was coded so far as a file that plays "
            "(….unfinished-….mp4).",
        ),
    ]


@dataclass(frozen=True)
class Choices:
    """The inputs above, as the nodes get them."""

    filename_prefix: str
    codec: str = "h264"
    quality: str = "high"
    audio_codec: str = "auto"
    container: str = "auto"
    preset: str = "balanced"
    crf: int = -1
    bit_depth: str = "8"
    hardware: str = "auto"
    loop_count: int = 0
    audio_volume: float = 1.0
    audio_start: float = 0.0
    audio_fade_in: float = 0.0
    audio_fade_out: float = 0.0
    save_output: bool = True
    workflow: str = WORKFLOW[0]
    keep_unfinished: bool = False

    @property
    def settings(self) -> media.Settings:
        """How the file is written."""
        return media.Settings(
            codec=self.codec,
            quality=self.quality,
            crf=None if self.crf < 0 else self.crf,
            preset=self.preset,
            container=self.container,
            audio_codec=self.audio_codec,
            bit_depth=int(self.bit_depth),
            hardware=self.hardware,
            keep_unfinished=self.keep_unfinished,
            loops=self.loop_count,
        )

    @property
    def shaping(self) -> media.Shaping:
        """What is done to the sound."""
        return media.Shaping(self.audio_start, self.audio_volume, self.audio_fade_in, self.audio_fade_out)


def refusal(sound: bool, filename_prefix: str | None, frame_rate: float | None, **values: Any) -> bool | str:
    """For `validate_inputs`: say before anything runs what could not be saved. Values that are None come from a link."""
    try:
        chosen = {name: value for name, value in values.items() if value is not None}
        plan = media.plan(Choices("", **chosen).settings, channels=2 if sound else 0)
        if frame_rate is not None:
            media.check_rate(media.frame_rate(frame_rate), plan)
        if filename_prefix is not None and "%" not in filename_prefix:
            media.check_prefix(filename_prefix)
    except HLWQError as error:
        return str(error)
    return True


class Saver:
    """Saves the videos of one run of a node, and collects what it shows."""

    def __init__(self, node: type[io.ComfyNode], choices: Choices):
        self._choices = choices
        self._prompt = node.hidden.prompt if node.hidden is not None else None
        self._extra = node.hidden.extra_pnginfo if node.hidden is not None else None
        self._results: list[ui.SavedResult] = []
        self._texts: list[str] = []
        self._videos: list[Any] = []

    def place(self, width: int, height: int, frames: int, rate: float) -> media.Place:
        """Where the next file goes, inside the output (or the temp) folder only."""
        values = {"width": width, "height": height, "frames": frames, "frame_rate": f"{rate:g}"}
        prefix = media.fill_in(self._choices.filename_prefix, values, self._prompt)
        if not prefix or prefix[-1] in "/\\":
            prefix += "HLWQ"  # core would make a hidden name of none
        media.check_prefix(prefix)
        return place(prefix, self._choices.save_output)

    def metadata(self) -> dict[str, Any]:
        """The tags that core's SaveVideo writes, so that the file can be dropped on the canvas."""
        if self._choices.workflow == WORKFLOW[2] or not compat.metadata_wanted():
            return {}
        tags = dict(self._extra or {})
        if self._prompt is not None:
            tags["prompt"] = self._prompt
        return tags

    def add(
        self,
        written: media.Written,
        where: media.Place,
        first: torch.Tensor,
        video: Callable[[], Any] | None = None,
        told: str | None = None,
    ) -> None:
        """Note a saved file.

        Args:
            first: its first frame.
            video: makes what is handed on where the file cannot be read again.
            told: a line more for the user.
        """
        kind = io.FolderType.output if self._choices.save_output else io.FolderType.temp
        path = written.path
        shown, subfolder = path.name, where.subfolder
        if path.is_dir():
            shown, subfolder = "00001.png", str(Path(subfolder) / path.name)
        notes = [told] if told else []
        if self._choices.workflow == WORKFLOW[1] and path.is_file():
            try:
                write_png(path.with_suffix(".png"), first, self.metadata())
            except HLWQError as error:  # the video has its name: failing now would make it again
                notes.append(f"without the picture beside it: {error.what}")
                log.warning("HLWQ: the picture beside %s was not written: %s", path.name, error)
        self._results.append(ui.SavedResult(shown, subfolder, kind))
        text = "; ".join([f"{path.name}: {written}", *notes, *rounded(self._prompt or {})])
        self._texts.append(text)
        self._videos.append(InputImpl.VideoFromFile(str(path)) if video is None else video())
        log.info("HLWQ saved %s in %s", text, path.parent)

    def output(self, *others: Any) -> io.NodeOutput:
        """The node's result."""
        shown = ui.PreviewVideo(self._results).as_dict() | {"text": tuple(self._texts)}
        if self._results and not self._results[0]["filename"].endswith((".mp4", ".mkv", ".webm", ".mov", ".gif")):
            shown.pop("animated")  # shown as a picture
        return io.NodeOutput(self._videos, *others, ui=shown)


def rounded(prompt: Mapping[str, Any]) -> list[str]:
    """Lengths and sizes that core's nodes have rounded down without a word, in a line each."""
    lines = []
    for node in prompt.values():
        if node.get("class_type") not in _ROUNDING:
            continue
        for name, step, offset in (("length", 8, 1), ("width", 32, 0), ("height", 32, 0)):
            value = node.get("inputs", {}).get(name)
            if isinstance(value, list):  # from a number's node
                value = prompt.get(str(value[0]), {}).get("inputs", {}).get("value")
            if isinstance(value, int) and (value - offset) % step:
                below = (value - offset) // step * step + offset
                lines.append(f"the {name} of {value} became {below}: LTX makes {below} or {below + step}")
    return lines


def place(prefix: str, output: bool = True) -> media.Place:
    """Folder, name, number and subfolder of the next file with this prefix, inside the output folder only."""
    base = folder_paths.get_output_directory() if output else folder_paths.get_temp_directory()
    try:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, base)
    except OSError as error:
        raise InputError(
            "the folder cannot be made",
            file=prefix,
            expected=f"a folder that can be made in {base}",
            found=error.strerror or error,
            fix="give ComfyUI's user the right to write there, or take another filename prefix",
        ) from error
    except Exception as error:  # core raises a bare Exception for a path outside
        raise InputError(
            "the file would not lie in the output folder",
            file=prefix,
            expected=f"a name inside {base}",
            found=str(error).splitlines()[0],
            fix="take a filename prefix without .. and without a drive or leading slash",
        ) from error
    return media.Place(Path(folder), name, counter, subfolder)
