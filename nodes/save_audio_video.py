"""HLWQ Save Audio + Video: frames and sound into one file in the output folder."""

from __future__ import annotations

import functools
from typing import Any

import torch
from comfy.utils import ProgressBar
from comfy_api.latest import InputImpl, Types, io

from ..hlwq_core import media
from ..hlwq_core.errors import InputError
from .saving import Choices, Saver, advance, advanced_inputs, file_inputs, refusal


class HLWQSaveAudioVideo(io.ComfyNode):
    """images IMAGE [frames, height, width, 3], audio AUDIO -> one file a video, VIDEO."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HLWQSaveAudioVideo",
            display_name="HLWQ Save Audio + Video",
            category="HLWQ/video",
            description="Saves frames and sound as one file; the sound is cut or padded with silence to fit.",
            search_aliases=["save video", "export mp4", "mux", "combine video audio", "gif", "webm", "prores"],
            inputs=[
                io.Image.Input(
                    "images", tooltip="The decoded frames, in order. Width and height must be even for most codecs."
                ),
                io.Float.Input(
                    "frame_rate",
                    default=24.0,
                    min=1.0,
                    max=240.0,
                    step=0.001,
                    tooltip="Frames a second. After a temporal upscaler take what HLWQ Upscale Latent hands on.",
                ),
                *file_inputs(),
                io.Audio.Input(
                    "audio",
                    optional=True,
                    tooltip="The sound. Too long: cut; too short: silence at the end. Not connected: a silent video. "
                    "A batch of sounds saves as many videos, with the frames divided evenly among them.",
                ),
                *advanced_inputs(),
                io.Boolean.Input(
                    "ping_pong",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Play the frames forth and back, so that a loop has no jump.",
                ),
            ],
            outputs=[
                io.Video.Output("video", is_output_list=True, tooltip="The saved file, a list if it was a batch.")
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls, filename_prefix: str | None = None, codec: str | None = None, quality: str | None = None,
        container: str | None = None, preset: str | None = None, crf: int | None = None, bit_depth: str | None = None,
        frame_rate: float | None = None,
    ) -> bool | str:  # fmt: skip
        """Say before anything runs what could not be saved."""
        return refusal(
            False, filename_prefix, frame_rate, codec=codec, quality=quality, container=container, preset=preset, crf=crf,
            bit_depth=bit_depth,
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        images: torch.Tensor,
        frame_rate: float,
        audio: dict[str, Any] | None = None,
        ping_pong: bool = False,
        **choices: Any,
    ) -> io.NodeOutput:
        chosen = Choices(**choices)
        rate = media.frame_rate(frame_rate)
        videos = split(images, audio)
        plans = [media.check(frames, sound, chosen.settings) for frames, sound in videos]
        progress = ProgressBar(
            sum(len(order) * repeats for (frames, _), plan in zip(videos, plans, strict=True)
                for order, repeats in [media.playing(frames.shape[0], plan, ping_pong)])
        )  # fmt: skip
        saver = Saver(cls, chosen)
        done = 0
        for (frames, sound), plan in zip(videos, plans, strict=True):
            where = saver.place(frames.shape[2], frames.shape[1], frames.shape[0], frame_rate)
            written = media.write_video(
                where,
                frames,
                rate,
                sound,
                chosen.settings,
                shaping=chosen.shaping,
                ping_pong=ping_pong,
                metadata=saver.metadata(),
                on_frame=functools.partial(advance, progress, done),
            )
            done += written.frames
            # FFmpeg reads neither an animated WebP nor a folder: what comes after gets the frames themselves.
            kept = (lambda frames=frames, sound=sound: components(frames, sound, rate)) if unread(plan) else None
            saver.add(written, where, frames[0], kept)
        return saver.output()


def unread(plan: media.Plan) -> bool:
    """Whether ComfyUI cannot read the file again as a video."""
    return plan.container in ("webp", "png")


def components(frames: torch.Tensor, sound: media.Sound | None, rate: Any) -> Any:
    """Frames and sound as a VIDEO."""
    audio = {"waveform": sound.waveform[None], "sample_rate": sound.rate} if sound is not None else None
    return InputImpl.VideoFromComponents(Types.VideoComponents(images=frames, audio=audio, frame_rate=rate))


def split(images: torch.Tensor, audio: dict[str, Any] | None) -> list[tuple[torch.Tensor, media.Sound | None]]:
    """The videos in the batch: IMAGE has no batch of its own, so the sounds say how many videos the frames make up."""
    if audio is None:
        return [(images, None)]
    sounds = sounds_of(audio)
    count = len(sounds)
    if count == 0 or images.shape[0] % count:
        raise InputError(
            "frames and sounds do not belong together",
            expected=f"frames that divide evenly among {count} sounds" if count else "at least one sound",
            found=f"{images.shape[0]} frames, {count} sounds",
            fix="connect the sound that was made with these frames",
        )
    each = images.shape[0] // count
    return [(images[i * each : (i + 1) * each], sound) for i, sound in enumerate(sounds)]


def sounds_of(audio: dict[str, Any]) -> list[media.Sound]:
    """The sounds of an AUDIO, one an entry of its batch.

    Raises:
        InputError: a wrong shape.
    """
    waveform, rate = audio["waveform"], int(audio["sample_rate"])
    if waveform.ndim != 3:
        raise InputError(
            "this is not a sound",
            expected="[batch, channels, samples]",
            found=list(waveform.shape),
            fix="connect the AUDIO of an audio decode or load node",
        )
    return [media.Sound(wave, rate) for wave in waveform]
