"""Load Checkpoint against the tiny LTX-2.3: complete, packed, and as core's own loaders give it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

CHECKPOINT = "LTX-2.3-tiny-HLWQ-Q5"


@pytest.fixture(scope="module")
def loaded(pack: ModuleType, comfy_base: Path):
    from comfyui_hlwq.nodes import load_checkpoint

    return load_checkpoint.HLWQLoadCheckpoint.execute(CHECKPOINT).args


def test_gives_model_and_both_vaes(loaded):
    model, vae, audio_vae, report = loaded
    assert model.model.__class__.__name__ == "LTXAV"
    assert type(vae.first_stage_model).__name__ == "VideoVAE"
    assert type(audio_vae.first_stage_model).__name__ == "AudioVAE"
    assert "59 packed tensors" in report or "packed tensors" in report
    assert "backend eager" in report and "cuda not used" in report
