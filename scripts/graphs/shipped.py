"""The shipped workflows, a function each."""

from __future__ import annotations

from typing import Any

from . import ltx25
from .parts import (
    INPUT_COLOR,
    PROMPT,
    PROMPT_AUDIO,
    PROMPT_IMAGE,
    PROMPT_NEXT,
    SPATIAL,
    TEMPORAL,
    Models,
    begin_with,
    closing,
    empty_latents,
    joint,
    opening,
    read_me,
    sample,
    start_image,
)
from .workflow import Workflow


def text_to_video(signatures: dict[str, Any]) -> Workflow:
    graph = Workflow("hlwq_ltx23_text_to_video", "HLWQ LTX-2.3: text to video", signatures)
    read_me(
        graph,
        """
Picture and sound from a text, in one stage: 8 steps of the distilled LoRA.

- **Width** and **Height**: multiples of 32.
- **Length**: frames, 8 n + 1 (9, 17, … 121). At 24 frames a second 121 frames are 5 seconds.
- The sound is as long as the video; **Save** cuts or pads it to the frame.
- For a sharper picture at a larger size take the two-stage workflow.
""",
    )
    base = opening(graph, PROMPT)
    video, audio = empty_latents(graph, base)
    latent = joint(graph, video, audio)
    graph.column()
    graph.group("Sampling")
    result = sample(graph, base, latent)
    closing(graph, base, result["output"], base.rate["FLOAT"])
    return graph


def image_to_video(signatures: dict[str, Any]) -> Workflow:
    graph = Workflow("hlwq_ltx23_image_to_video", "HLWQ LTX-2.3: image to video", signatures)
    read_me(
        graph,
        """
A picture comes to life, with sound: the start image is the first frame.

- **Start image**: any size; the middle is cut to the format of **Width** × **Height** (multiples of 32).
- **Length**: frames, 8 n + 1.
- The prompt says what happens, not what is in the picture already.
- **strength** below 1 in *LTXVImgToVideoInplace* lets the first frame change a little.
""",
    )
    base = opening(graph, PROMPT_IMAGE)
    image = start_image(graph, base)
    video, audio = empty_latents(graph, base)
    latent = joint(graph, begin_with(graph, base, image, video), audio)
    graph.column()
    graph.group("Sampling")
    result = sample(graph, base, latent)
    closing(graph, base, result["output"], base.rate["FLOAT"])
    return graph


def two_stage(signatures: dict[str, Any]) -> Workflow:
    graph = Workflow("hlwq_ltx23_two_stage", "HLWQ LTX-2.3: two stages, spatial ×2", signatures)
    read_me(
        graph,
        """
Lightricks' way to a large picture: 8 steps at half the size, the spatial upscaler, 3 steps at full size.

- **Width** and **Height** are the result's: multiples of 64, because the first stage has half of them.
- **Length**: frames, 8 n + 1.
- The sound passes the upscaler untouched and is refined with the picture in the second stage.
""",
        upscalers=True,
        height=520,
    )
    return both_stages(graph, PROMPT)


def image_two_stage(signatures: dict[str, Any]) -> Workflow:
    graph = Workflow("hlwq_ltx23_image_to_video_two_stage", "HLWQ LTX-2.3: image to video, spatial ×2", signatures)
    read_me(
        graph,
        """
Lightricks' way from a picture to a large video: 8 steps at half the size, the spatial upscaler, 3 steps at full size.

- **Start image**: any size; the middle is cut to the format of **Width** × **Height**. It is set again after the upscaler.
- **Width** and **Height** are the result's: multiples of 64, because the first stage has half of them.
- **Length**: frames, 8 n + 1.
- The prompt says what happens, not what is in the picture already.
""",
        upscalers=True,
        height=560,
    )
    return both_stages(graph, PROMPT_IMAGE, with_image=True)


def both_stages(
    graph: Workflow, prompt: str, *, with_image: bool = False, loaded: Models | None = None, first_strength: float = 1.0,
    method: str = "euler",
) -> Workflow:  # fmt: skip
    """Half the size, spatial ×2, refined; a start image becomes the first frame in both stages.

    Args:
        loaded: the models; LTX-2.3's where none are given.
        first_strength: of the start image in the first stage.
        method: the sampler.
    """
    base = opening(graph, prompt, {"spatial": SPATIAL}, loaded)
    base.width.inputs["value"], base.height.inputs["value"] = 1536, 1024
    image = start_image(graph, base) if with_image else None
    video, audio = empty_latents(graph, base, half=True)
    if image is not None:
        video = begin_with(graph, base, image, video, first_strength)
    latent = joint(graph, video, audio)
    graph.column()
    graph.group("Stage 1: half the size")
    first = sample(graph, base, latent, method=method)
    graph.group("Spatial ×2", "#b58b2a")
    larger = graph.add(
        "HLWQUpscaleLatent", latent=first["output"], vae=base.vae, mode="spatial",
        frame_rate=base.rate["FLOAT"], spatial_upscaler=base.upscalers["spatial"]["LATENT_UPSCALE_MODEL"],
    )  # fmt: skip
    latent = larger["latent"]
    if image is not None:
        parts = graph.add("LTXVSeparateAVLatent", av_latent=latent)
        latent = joint(graph, begin_with(graph, base, image, parts["video_latent"]), parts["audio_latent"])
    graph.column()
    graph.group("Stage 2: refine")
    second = sample(graph, base, latent, second=True, method=method)
    closing(graph, base, second["output"], larger["frame_rate"])
    return graph


def temporal_upscale(signatures: dict[str, Any]) -> Workflow:
    graph = Workflow("hlwq_ltx23_temporal_upscale", "HLWQ LTX-2.3: twice the frame rate", signatures)
    read_me(
        graph,
        """
Smooth motion: 8 steps at **Frame rate**, the temporal upscaler, 3 steps at twice the frame rate.

- **Length** frames become 2 × Length − 1, **Frame rate** becomes twice as much: the video lasts as long as before,
  and the sound stays in time. 121 frames at 24 become 241 at 48.
- Everything behind the upscaler takes the frame rate that **Upscale Latent** hands on.
- To double the size as well, add the spatial upscaler and set the mode to *both*.
""",
        upscalers=True,
        height=600,
    )
    base = opening(graph, PROMPT, {"temporal": TEMPORAL})
    video, audio = empty_latents(graph, base)
    latent = joint(graph, video, audio)
    graph.column()
    graph.group("Stage 1")
    first = sample(graph, base, latent)
    graph.group("Temporal ×2", "#b58b2a")
    longer = graph.add(
        "HLWQUpscaleLatent", latent=first["output"], vae=base.vae, mode="temporal",
        frame_rate=base.rate["FLOAT"], temporal_upscaler=base.upscalers["temporal"]["LATENT_UPSCALE_MODEL"],
    )  # fmt: skip
    doubled = graph.add(
        "LTXVConditioning", positive=base.positive["CONDITIONING"], negative=base.negative["CONDITIONING"],
        frame_rate=longer["frame_rate"],
    )  # fmt: skip
    graph.column()
    graph.group("Stage 2: refine")
    second = sample(graph, base, longer["latent"], second=True, conditioning=doubled)
    closing(graph, base, second["output"], longer["frame_rate"])
    return graph


def audio_to_video(signatures: dict[str, Any]) -> Workflow:
    graph = Workflow("hlwq_ltx23_audio_to_video", "HLWQ LTX-2.3: audio to video", signatures)
    read_me(
        graph,
        """
A picture that follows a sound: speech, a song, a noise.

- **Audio**: your file. **Trim** chooses where to begin; its length follows from **Length** and **Frame rate**.
- The sound's latent is kept as it is (noise mask 0) while the picture is made.
- The file gets the sound that you gave, not its decoded copy. A sound that is too short ends in silence.
- The prompt describes who is heard and what is seen.
""",
    )
    base = opening(graph, PROMPT_AUDIO)
    graph.column()
    graph.group("Audio")
    sound = graph.add("LoadAudio", "Audio", lines=3, audio="audio.wav", color=INPUT_COLOR)
    seconds = graph.add(
        "ComfyMathExpression", "Seconds", expression="a / b", values__a=base.length["INT"], values__b=base.rate["FLOAT"]
    )
    trimmed = graph.add("TrimAudioDuration", "Trim", audio=sound["AUDIO"], start_index=0.0, duration=seconds["FLOAT"])
    encoded = graph.add("LTXVAudioVAEEncode", audio=trimmed["AUDIO"], audio_vae=base.audio_vae)
    keep = graph.add("SolidMask", "Keep the sound", value=0.0, width=64, height=64)
    audio = graph.add("SetLatentNoiseMask", samples=encoded["Audio Latent"], mask=keep["MASK"])
    graph.column()
    graph.group("Empty latent")
    video = graph.add(
        "EmptyLTXVLatentVideo",
        width=base.width["INT"],
        height=base.height["INT"],
        length=base.length["INT"],
        batch_size=1,
    )
    latent = joint(graph, video["LATENT"], audio["LATENT"])
    graph.group("Sampling")
    result = sample(graph, base, latent)
    closing(graph, base, result["output"], base.rate["FLOAT"], audio=trimmed["AUDIO"])
    return graph


def extend(signatures: dict[str, Any]) -> Workflow:
    graph = Workflow("hlwq_ltx23_extend", "HLWQ LTX-2.3: a video goes on", signatures)
    read_me(
        graph,
        """
The last frames of a video are the first of the next: it goes on, and its sound passes into the new one.

- **Video**: a file at **Width** × **Height** and **Frame rate**, such as one that **Save** made. Its result extends again.
- **Last frames**: how many are repeated, 8 n + 1; **Save** leaves them out of the new part and fades the sounds there.
- **Length**: frames that are sampled, the repeated ones included, 8 n + 1.
- The prompt says what happens next.
""",
        height=560,
    )
    base = opening(graph, PROMPT_NEXT)
    graph.column()
    graph.group("The video so far")
    video = graph.add("LoadVideo", "Video", lines=14, file="clip.mp4", after=["image"], color=INPUT_COLOR)
    parts = graph.add("GetVideoComponents", video=video["VIDEO"])
    count = graph.add("PrimitiveInt", "Last frames", value=17, after=["fixed"], color=INPUT_COLOR)
    start = graph.add("ComfyMathExpression", "From the end", expression="0 - a", values__a=count["INT"])
    last = graph.add("ImageFromBatch", image=parts["images"], batch_index=start["INT"], length=count["INT"])
    empty, audio = empty_latents(graph, base)
    latent = joint(graph, begin_with(graph, base, last["IMAGE"], empty), audio)
    graph.column()
    graph.group("Sampling")
    result = sample(graph, base, latent)
    closing(
        graph, base, result["output"], base.rate["FLOAT"], extends=video["VIDEO"], overlap_frames=count["INT"]
    )  # fmt: skip
    return graph


def long_video(signatures: dict[str, Any]) -> Workflow:
    graph = Workflow("hlwq_ltx23_long_video", "HLWQ LTX-2.3: a minute in one go", signatures)
    read_me(
        graph,
        """
A long video in overlapping windows: each step of the sampler goes over the whole length, a window at a time, so that memory
is that of a window.

- **Length**: frames, 8 n + 1; 1441 at 24 a second are a minute.
- **Windows**: how many frames are seen at once, and how many two windows share. What happens in one window another does not
  know: the picture drifts, a story does not unfold. For that, extend a video (*a video goes on*).
- **Save** decodes and writes as it goes, so that a minute needs no more memory than five seconds.
""",
        height=560,
    )
    base = opening(graph, PROMPT)
    base.length.inputs["value"] = 1441
    video, audio = empty_latents(graph, base)
    latent = joint(graph, video, audio)
    graph.column()
    graph.group("Sampling")
    windows = graph.add(
        "LTXVContextWindows", "Windows", model=base.model, context_length=121, context_overlap=40,
        context_schedule="standard_uniform", context_stride=1, closed_loop=False, fuse_method="pyramid", freenoise=True,
        retain_first_frame=False, split_conds_to_windows=False, color=INPUT_COLOR,
    )  # fmt: skip
    result = sample(graph, base, latent, model=windows["MODEL"])
    closing(graph, base, result["output"], base.rate["FLOAT"])
    return graph


def ltx25_text_to_video(signatures: dict[str, Any]) -> Workflow:
    graph = Workflow("hlwq_ltx25_text_to_video", "HLWQ LTX-2.5: text to video", signatures)
    read_me(
        graph,
        """
Picture and sound from a text with LTX-2.5: 8 steps at half the size, the spatial upscaler, 3 steps at full size, as in
ComfyUI's own template. It needs ComfyUI 0.32.0 or newer.

- **Width** and **Height** are the result's: multiples of 64, because the first stage has half of them.
- **Length**: frames, 8 n + 1.
""",
        where=ltx25.WHERE,
        height=760,
    )
    return both_stages(graph, PROMPT, loaded=ltx25.models(graph), method=ltx25.METHOD)


def ltx25_image_to_video(signatures: dict[str, Any]) -> Workflow:
    graph = Workflow("hlwq_ltx25_image_to_video", "HLWQ LTX-2.5: image to video", signatures)
    read_me(
        graph,
        """
A picture comes to life, with sound, with LTX-2.5: 8 steps at half the size, the spatial upscaler, 3 steps at full size, as in
ComfyUI's own template. It needs ComfyUI 0.32.0 or newer.

- **Start image**: any size; the middle is cut to the format of **Width** × **Height**. It is set again after the upscaler.
- **Width** and **Height** are the result's: multiples of 64, because the first stage has half of them.
- **Length**: frames, 8 n + 1.
- The prompt says what happens, not what is in the picture already.
""",
        where=ltx25.WHERE,
        height=800,
    )
    return both_stages(
        graph, PROMPT_IMAGE, with_image=True, loaded=ltx25.models(graph), first_strength=0.7, method=ltx25.METHOD
    )


WORKFLOWS = (
    text_to_video, image_to_video, two_stage, image_two_stage, temporal_upscale, audio_to_video, extend, long_video,
    ltx25_text_to_video, ltx25_image_to_video,
)  # fmt: skip
