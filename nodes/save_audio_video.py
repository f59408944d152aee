"""HLWQ Save Audio + Video: frames and sound into one MP4 in the output folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy.utils import ProgressBar
from comfy_api.latest import InputImpl, io, ui

from ..hlwq_core import media
from ..hlwq_core.errors import InputError
from . import compat

log = logging.getLogger(__name__)


class HLWQSaveAudioVideo(io.ComfyNode):
    """images IMAGE [frames, height, width, 3], audio AUDIO -> one MP4 a video, VIDEO."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HLWQSaveAudioVideo",
            display_name="HLWQ Save Audio + Video",
            category="HLWQ",
            description="Saves frames and sound as one MP4; the sound is cut or padded with silence to fit.",
            search_aliases=["save video", "export mp4", "mux", "combine video audio"],
            inputs=[
                io.Image.Input("images", tooltip="The decoded frames, in order. Width and height must be even."),
                io.Float.Input(
                    "frame_rate",
                    default=24.0,
                    min=1.0,
                    max=240.0,
                    step=0.001,
                    tooltip="Frames a second. After a temporal upscaler take what HLWQ Upscale Latent hands on.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="video/HLWQ",
                    tooltip="Folder and name inside ComfyUI's output folder; a number and .mp4 are added. "
                    "%date:yyyy-MM-dd%, %width% and the like are filled in.",
                ),
                io.Combo.Input(
                    "codec",
                    options=media.video_codecs(),
                    default="h264",
                    tooltip="h264 plays everywhere; h265, vp9 and av1 make smaller files and are slower to write. "
                    "h265 and av1 need at least 64 x 64 pixels.",
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
                    options=list(media.AUDIO_CODECS),
                    default="aac",
                    tooltip="aac plays everywhere; opus sounds better at low bit rates (not in older Apple players).",
                ),
                io.Audio.Input(
                    "audio",
                    optional=True,
                    tooltip="The sound. Too long: cut; too short: silence at the end. Not connected: a silent video. "
                    "A batch of sounds saves as many videos, with the frames divided evenly among them.",
                ),
            ],
            outputs=[
                io.Video.Output("video", is_output_list=True, tooltip="The saved file, a list if it was a batch.")
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        images: torch.Tensor,
        frame_rate: float,
        filename_prefix: str,
        codec: str,
        quality: str,
        audio_codec: str,
        audio: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        rate = media.frame_rate(frame_rate)
        videos = split(images, audio)
        for frames, sound in videos:
            media.check(frames, sound, codec)
        progress = ProgressBar(images.shape[0])
        saved, texts = [], []
        done = 0
        for frames, sound in videos:
            folder, name, counter, subfolder = place(filename_prefix, frames)
            path = Path(folder) / f"{name}_{counter:05}_.mp4"
            written = media.write_mp4(
                path,
                frames,
                rate,
                sound,
                codec=codec,
                quality=quality,
                audio_codec=audio_codec,
                metadata=cls._workflow(),
                on_frame=lambda count, before=done: progress.update_absolute(before + count),
            )
            done += frames.shape[0]
            saved.append((path, ui.SavedResult(path.name, subfolder, io.FolderType.output)))
            texts.append(f"{path.name}: {written}")
            log.info("HLWQ saved %s: %s", path, written)
        shown = ui.PreviewVideo([result for _, result in saved]).as_dict() | {"text": tuple(texts)}
        return io.NodeOutput([InputImpl.VideoFromFile(str(path)) for path, _ in saved], ui=shown)

    @classmethod
    def _workflow(cls) -> dict[str, Any]:
        """The tags that core's SaveVideo writes, so that the file can be dropped on the canvas."""
        if cls.hidden is None or not compat.metadata_wanted():
            return {}
        tags = dict(cls.hidden.extra_pnginfo or {})
        if cls.hidden.prompt is not None:
            tags["prompt"] = cls.hidden.prompt
        return tags


def split(images: torch.Tensor, audio: dict[str, Any] | None) -> list[tuple[torch.Tensor, media.Sound | None]]:
    """The videos in the batch: IMAGE has no batch of its own, so the sounds say how many videos the frames make up."""
    if audio is None:
        return [(images, None)]
    waveform, rate = audio["waveform"], int(audio["sample_rate"])
    if waveform.ndim != 3:
        raise InputError(
            "this is not a sound",
            expected="[batch, channels, samples]",
            found=list(waveform.shape),
            fix="connect the AUDIO of an audio decode or load node",
        )
    count = waveform.shape[0]
    if count == 0 or images.shape[0] % count:
        raise InputError(
            "frames and sounds do not belong together",
            expected=f"frames that divide evenly among {count} sounds" if count else "at least one sound",
            found=f"{images.shape[0]} frames, {count} sounds",
            fix="connect the sound that was made with these frames",
        )
    each = images.shape[0] // count
    return [(images[i * each : (i + 1) * each], media.Sound(wave, rate)) for i, wave in enumerate(waveform)]


def place(prefix: str, frames: torch.Tensor) -> tuple[str, str, int, str]:
    """Folder, name, number and subfolder of the next file with this prefix, inside the output folder only."""
    output = folder_paths.get_output_directory()
    try:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            prefix, output, frames.shape[2], frames.shape[1]
        )
    except Exception as error:  # core raises a bare Exception for a path outside
        raise InputError(
            "the file would not lie in the output folder",
            file=prefix,
            expected=f"a name inside {output}",
            found=str(error).splitlines()[0],
            fix="take a filename_prefix without .. and without a drive or leading slash",
        ) from error
    return folder, name, counter, subfolder
