"""A soak (tests/attacks/soak.py) of as many prompts as HLWQ_SOAK says, at least 10: minutes."""

from __future__ import annotations

import os

import pytest

from ..attacks import soak

PROMPTS = int(os.environ.get("HLWQ_SOAK", "0"))


@pytest.mark.slow
@pytest.mark.skipif(not PROMPTS, reason="minutes: HLWQ_SOAK=12")
@pytest.mark.timeout(300 + 60 * PROMPTS)
def test_nothing_grows(comfyui_path: object, tiny: object) -> None:
    assert soak.soak(PROMPTS, every=max(1, PROMPTS // 4), seed=1, report=print)["faults"] == []
