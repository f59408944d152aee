"""Encoders in hardware. A name in FFmpeg's list is no proof: each is tried once in a process, on a small picture."""

from __future__ import annotations

import functools
import logging
import sys
from fractions import Fraction
from typing import Any

import av

from .formats import Plan, knows

log = logging.getLogger("hlwq")

# Family -> codec -> FFmpeg's encoder.
FAMILIES = {
    "nvenc": {"h264": "h264_nvenc", "h265": "hevc_nvenc", "av1": "av1_nvenc"},
    "qsv": {"h264": "h264_qsv", "h265": "hevc_qsv", "av1": "av1_qsv"},
    "amf": {"h264": "h264_amf", "h265": "hevc_amf", "av1": "av1_amf"},
    "videotoolbox": {"h264": "h264_videotoolbox", "h265": "hevc_videotoolbox"},
}
_SIDE = 256  # pixels: above the least that any of them takes


def families() -> list[str]:
    """Those of which this PyAV has an encoder at all, on this system."""
    elsewhere = {"videotoolbox": sys.platform != "darwin", "amf": sys.platform == "darwin"}
    return [f for f, codecs in FAMILIES.items() if not elsewhere.get(f) and any(map(knows, codecs.values()))]


def pixels(plan: Plan) -> str:
    """The pixel format that hardware takes for the plan's bit depth."""
    return "p010le" if plan.bits == 10 else "nv12"


def options(family: str, plan: Plan) -> dict[str, str]:
    """Constant quality and the preset, in the family's own words. Its scales are those of the software encoders."""
    quality = str(plan.crf)
    rank = ("fastest", "fast", "balanced", "smallest file").index(plan.settings.preset)
    if family == "nvenc":
        return {"rc": "vbr", "cq": quality, "b": "0", "preset": ("p1", "p3", "p5", "p7")[rank], "spatial-aq": "1"}
    if family == "qsv":
        return {"global_quality": quality, "preset": ("veryfast", "faster", "medium", "veryslow")[rank]}
    if family == "amf":
        words = ("speed", "speed", "balanced", "quality")[rank]
        return {"rc": "cqp", "qp_i": quality, "qp_p": quality, "qp_b": quality, "quality": words}
    # VideoToolbox counts from 1 (worst) to 100; FFmpeg takes that in the unit of its lambdas.
    return {"flags": "+qscale", "global_quality": str(118 * max(1, 100 - 2 * (plan.crf or 0)))}


@functools.cache
def refusal(encoder: str) -> str | None:
    """Why the encoder does not work on this machine; None if it does."""
    if not knows(encoder):
        return f"this PyAV has no {encoder}"
    level = av.logging.get_level()
    av.logging.set_level(av.logging.PANIC)  # a refusal is no news: we say in a line what was taken instead
    try:
        context: Any = av.CodecContext.create(encoder, "w")
        context.width = context.height = _SIDE
        context.pix_fmt, context.time_base, context.framerate = "nv12", Fraction(1, 24), Fraction(24)
        frame = av.VideoFrame(_SIDE, _SIDE, "nv12")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        frame.pts = 0
        packets = context.encode(frame) + context.encode(None)
        return None if packets else f"{encoder} gave no data"
    except (av.FFmpegError, OSError, ValueError) as error:
        return f"{encoder} does not open here ({getattr(error, 'strerror', None) or error})"
    finally:
        av.logging.set_level(level)


def choose(plan: Plan) -> tuple[str | None, str | None]:
    """The family whose encoder is to be used for the plan, and a line to say if one was asked for in vain."""
    asked = plan.settings.hardware
    if asked == "off":
        return None, None
    names = families() if asked == "auto" else [asked]
    reason = None
    for family in names:
        encoder = FAMILIES.get(family, {}).get(plan.name)
        if encoder is None or plan.crf is None:
            reason = f"{family} does not code {plan.name}"
            continue
        reason = refusal(encoder)
        if reason is None:
            return family, None
        log.debug("HLWQ: %s", reason)
    return None, None if asked == "auto" else f"{reason}: coded by the CPU"
