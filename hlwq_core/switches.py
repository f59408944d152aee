"""The environment variables that the pack heeds, for emergencies: what a model does is chosen in its loader.

docs/performance.md lists them for users; a test holds that list and this one together.
"""

from __future__ import annotations

import os

# Name, what it does.
SWITCHES = {
    "HLWQ_BACKEND": "the backend that decodes, where the loader says auto",
    "HLWQ_ATTENTION": "0: attention as ComfyUI has it, whatever the loader says",
    "HLWQ_CUDA_GRAPHS": "0: no blocks are recorded",
    "HLWQ_FEWER_PASSES": "0: fast mode's blocks run in all their passes",
    "HLWQ_KEEP_DECODED": "0: no decoded weights are kept",
    "HLWQ_LOAD_AT_ONCE": "0: ComfyUI loads layer by layer",
}


def value(name: str) -> str:
    """What a switch is set to, "" where it is not."""
    assert name in SWITCHES, f"{name} is no switch of ours"
    return os.environ.get(name, "")


def off(name: str) -> bool:
    """Whether a switch was set to 0."""
    return value(name) == "0"
