"""Video files: what is in one, and how frames and sound become one. PyAV does the coding and the muxing.

`formats` says what can be written, `writing` writes it, `coders` talks to PyAV, `pixels` and `sound` prepare what is
coded, `hardware` finds encoders in hardware, `names` finds a name, `faults` tells what went wrong, `reading` reads.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .reading import AudioStream, MediaInfo, VideoStream, probe, read_frames, read_sound

if TYPE_CHECKING:
    from .formats import CONTAINERS, PRESETS, QUALITIES, Plan, Settings, audio_codecs, plan, video_codecs
    from .names import Place, check_prefix, fill_in
    from .sound import Shaping, Sound, check_sound, join, shape
    from .writing import Writer, Written, check, check_rate, check_size, frame_rate, playing, write_video

__all__ = [
    "CONTAINERS",
    "QUALITIES",
    "PRESETS",
    "AudioStream",
    "MediaInfo",
    "Place",
    "Plan",
    "Settings",
    "Shaping",
    "Sound",
    "VideoStream",
    "Writer",
    "Written",
    "audio_codecs",
    "check",
    "check_prefix",
    "check_rate",
    "check_size",
    "check_sound",
    "fill_in",
    "frame_rate",
    "join",
    "plan",
    "playing",
    "probe",
    "read_frames",
    "read_sound",
    "shape",
    "video_codecs",
    "write_video",
]

# Whoever only looks into a file, as the command line does, needs no torch. What else there is, is imported when it is first asked for.
_PLACES = {
    "formats": "CONTAINERS PRESETS QUALITIES Plan Settings audio_codecs plan video_codecs",
    "names": "Place check_prefix fill_in",
    "sound": "Shaping Sound check_sound join shape",
    "writing": "Writer Written check check_rate check_size frame_rate playing write_video",
}


def __getattr__(name: str) -> Any:
    for module, names in _PLACES.items():
        if name in names.split():
            return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
