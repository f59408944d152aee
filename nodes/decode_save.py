"""HLWQ Decode + Save: a sampled latent into a file, frame by frame, with its sound."""

from __future__ import annotations

import functools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from comfy.utils import ProgressBar
from comfy_api.latest import io

from ..hlwq_core import media
from ..hlwq_core.errors import InputError
from . import compat, decoding
from .compat import vae as core
from .save_audio_video import sounds_of, unread
from .saved_pictures import SavedPictures
from .saving import Choices, Saver, advance, advanced_inputs, file_inputs, refusal


class HLWQDecodeSave(io.ComfyNode):
    """latent LATENT [batch, channels, frames, height, width] (with its sound) -> one file a video, VIDEO."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HLWQDecodeSave",
            display_name="HLWQ Decode + Save",
            category="HLWQ/video",
            description="Decodes a video latent and its sound and saves them as one file, frame by frame: "
            "never are all frames in memory.",
            search_aliases=["vae decode", "save video", "export mp4", "decode latent", "long video"],
            inputs=[
                io.Latent.Input("latent", tooltip="The sampler's latent: of a video, or joint with its sound."),
                io.Vae.Input("vae", tooltip="The checkpoint's video VAE."),
                io.Float.Input(
                    "frame_rate",
                    default=24.0,
                    min=1.0,
                    max=240.0,
                    step=0.001,
                    tooltip="Frames a second. After a temporal upscaler take what HLWQ Upscale Latent hands on.",
                ),
                *file_inputs(),
                io.Vae.Input(
                    "audio_vae",
                    optional=True,
                    tooltip="The checkpoint's audio VAE, for the sound of a joint latent. Not connected: a silent video.",
                ),
                io.Audio.Input(
                    "audio", optional=True, tooltip="A sound to save as it is, in place of the latent's own."
                ),
                io.Video.Input(
                    "extends",
                    optional=True,
                    tooltip="A video that the latent goes on from: the file begins with it, and its sound passes into "
                    "the new one.",
                ),
                *advanced_inputs(),
                io.Int.Input(
                    "overlap_frames",
                    default=17,
                    min=0,
                    max=1001,
                    step=8,
                    optional=True,
                    advanced=True,
                    tooltip="Only with extends: how many of the latent's first frames repeat the end of that video. "
                    "They are left out, and the sounds are crossfaded there.",
                ),
                io.Int.Input(
                    "tile_size",
                    default=0,
                    min=0,
                    max=4096,
                    step=32,
                    optional=True,
                    advanced=True,
                    tooltip="0: whole frames where they fit into memory, else tiles. Above: tiles of so many pixels.",
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
        if reason := compat.why_not(compat.Feature.DECODING):
            return reason
        return refusal(
            False, filename_prefix, frame_rate, codec=codec, quality=quality, container=container, preset=preset, crf=crf,
            bit_depth=bit_depth,
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        latent: dict[str, Any],
        vae: Any,
        frame_rate: float,
        audio_vae: Any = None,
        audio: dict[str, Any] | None = None,
        extends: Any = None,
        overlap_frames: int = 17,
        tile_size: int = 0,
        **choices: Any,
    ) -> io.NodeOutput:
        chosen = Choices(**choices)
        rate = media.frame_rate(frame_rate)
        parts = compat.latent_parts(latent["samples"])
        video = parts[0]
        check_latent(video, vae)
        scale, pixels = core.scales(vae)
        batch, _, latent_frames, height, width = video.shape
        count = scale * (latent_frames - 1) + 1
        size = (width * pixels, height * pixels)
        sounds = sounds_for(parts, audio, audio_vae, batch)
        earlier = None
        if extends is not None:
            earlier = Earlier(extends, size, rate, overlap_frames, count)
            sounds = [earlier.join(sound) for sound in sounds]
            count += earlier.frames - overlap_frames
        channels = sounds[0].waveform.shape[0] if sounds else 0
        plan = media.plan(chosen.settings, channels)
        media.check_size(*size, plan)
        if chosen.loop_count and plan.container not in ("gif", "webp"):
            raise InputError(
                "frames that are saved as they come are saved once",
                expected="loop count 0 for anything but gif and webp",
                found=chosen.loop_count,
                fix="set the loop count to 0, or use VAE Decode and HLWQ Save Audio + Video",
            )
        progress = ProgressBar(batch * count)
        saver = Saver(cls, chosen)
        for index in range(batch):
            where = saver.place(*size, count, frame_rate)
            first: list[torch.Tensor] = []
            with media.Writer(
                where, plan, size, count, rate, sounds[index] if sounds else None,
                shaping=chosen.shaping, metadata=saver.metadata(),
                on_frame=functools.partial(advance, progress, index * count),
            ) as writer:  # fmt: skip

                def take(frames: torch.Tensor, writer: media.Writer = writer, first: list = first) -> None:
                    if not first:
                        first.append(frames[0].cpu())
                    writer.write(frames)

                receive: Callable[[torch.Tensor], None] = take
                if earlier is not None:
                    for frame in media.read_frames(earlier.path):
                        take(frame)
                    receive = skip(take, overlap_frames)
                told = decoding.decode(vae, video[index : index + 1], receive, tile_size // pixels)
                written = writer.finish()
            saver.add(
                written,
                where,
                first[0],
                functools.partial(SavedPictures, written.path, rate) if unread(plan) else None,
                told,
            )
        return saver.output()


class Earlier:
    """The video that is extended: `frames` of it, in the file `path`.

    Raises:
        InputError: another size or rate than the new frames', or shorter than what the two have in common.
    """

    def __init__(self, video: Any, size: tuple[int, int], rate: Fraction, overlap: int, new: int):
        self._rate, self._overlap, self._new = rate, overlap, new
        source = video.get_stream_source()
        if not isinstance(source, str) or video.get_active_trim_window() != (0.0, 0.0):
            raise InputError(
                "only a whole file can be extended",
                expected="the VIDEO of Load Video, or of a node that saves",
                found=type(video).__name__,
                fix="save the video first, then extend the file",
            )
        self.path = source
        info = media.probe(source)
        found = info.video
        if found is None or (found.width, found.height) != size or abs(found.rate - rate) > 0.001:
            raise InputError(
                "the video that is extended differs from the new frames",
                file=source,
                expected=f"{size[0]} x {size[1]} at {float(rate):g} frames a second",
                found=str(info),
                fix="sample at the size and the rate of the video that is extended",
            )
        self.frames = found.frames
        if overlap > min(self.frames, new):
            raise InputError(
                "the overlap is longer than one of the videos",
                expected=f"at most {min(self.frames, new)} frames",
                found=overlap,
                fix="take fewer overlap frames",
            )

    def join(self, sound: media.Sound) -> media.Sound:
        """The earlier sound, crossfaded into the new one; silence where the file has none."""
        earlier = media.read_sound(self.path, sound.rate) or media.Sound(torch.zeros(1, 1), sound.rate)
        first, _ = media.shape(earlier, self.frames / self._rate)
        second, _ = media.shape(sound, self._new / self._rate)
        return media.join(first, second, float(self._overlap / self._rate))


def skip(take: Callable[[torch.Tensor], None], frames: int) -> Callable[[torch.Tensor], None]:
    """`take`, without the first `frames` that come."""
    left = frames

    def rest(new: torch.Tensor) -> None:
        nonlocal left
        begin = min(left, new.shape[0])
        left -= begin
        if begin < new.shape[0]:
            take(new[begin:])

    return rest


def check_latent(video: Any, vae: Any) -> None:
    """Refuse what is no video latent, and a VAE that is not made for it.

    Raises:
        InputError: names both.
    """
    channels = getattr(vae, "latent_channels", None)
    if getattr(video, "ndim", 0) != 5 or getattr(vae, "latent_dim", None) != 3 or video.shape[1] != channels:
        raise InputError(
            "latent and VAE do not belong together",
            expected=f"a video latent [batch, {channels}, frames, height, width] of this VAE"
            if getattr(vae, "latent_dim", None) == 3
            else "a video VAE: the VAE output of HLWQ Load Checkpoint",
            found=f"a latent {list(getattr(video, 'shape', []))}, "
            f"a VAE {type(getattr(vae, 'first_stage_model', vae)).__name__}",
            fix="connect the sampler's latent, and VAE (not AUDIO VAE) of the checkpoint that made it",
        )


def sounds_for(
    parts: list[torch.Tensor], audio: dict[str, Any] | None, audio_vae: Any, batch: int
) -> list[media.Sound]:
    """The sound of each video of the batch: what was given, else what the latent holds; none without either.

    Raises:
        InputError: no sound in the latent, or fewer sounds than videos.
    """
    if audio is None and audio_vae is None:
        return []
    if audio is None:
        if len(parts) < 2:
            raise InputError(
                "there is no sound in this latent",
                expected="the joint latent of the sampler",
                found="a video latent alone",
                fix="connect the latent before LTXVSeparateAVLatent, or disconnect the audio VAE for a silent video",
            )
        audio = core.decode_sound(parts[1], audio_vae)
    sounds = sounds_of(audio)
    if len(sounds) == 1:
        sounds *= batch
    if len(sounds) != batch:
        raise InputError(
            "videos and sounds do not belong together",
            expected=f"one sound, or {batch}",
            found=f"{batch} videos, {len(sounds)} sounds",
            fix="connect the sound that was made with these videos",
        )
    for sound in sounds:
        media.check_sound(sound)
    return sounds
