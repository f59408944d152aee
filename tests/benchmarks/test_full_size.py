"""The benchmark of whole models runs, on narrow layers: its figures mean something on a GPU only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "full_size.py"


@pytest.mark.parametrize("options", [["hlwq", "--lora", "8", "--host"], ["hlwq_fast"], ["gguf_q5k"]])
def test_one_format(comfyui_path, options):
    command = [sys.executable, str(PROGRAM), "--small", "--blocks", "1", "--tokens", "96", "--steps", "4", "--format"]
    environment = os.environ | {"COMFYUI_PATH": str(comfyui_path)}
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert result["runs"][0]["tokens"] == 96 and result["runs"][0]["step_s"] > 0
    if "--lora" in options:
        assert result["lora_weight_error"] < 0.0025  # of bfloat16's rounding
        assert result["host_us_linear"] > 0


def test_q5k_against_its_description():
    """A super-block decoded value by value, as the format is described."""
    sys.path.insert(0, str(PROGRAM.parent))
    try:
        import q5k
    finally:
        sys.path.pop(0)
    import torch

    data = q5k.random_q5k(1, 256, torch.Generator().manual_seed(0))
    block = data[0].tolist()
    d, smallest = data[0, :4].view(torch.float16).tolist()
    scales, high, low = block[4:16], block[16:48], block[48:]
    expected = []
    for i in range(256):
        group, place = divmod(i, 32)
        if group < 4:
            scale, minimum = scales[group] & 63, scales[group + 4] & 63
        else:
            scale = (scales[group + 4] & 15) | (scales[group - 4] >> 6 << 4)
            minimum = (scales[group + 4] >> 4) | (scales[group] >> 6 << 4)
        byte = low[group // 2 * 32 + place]
        code = (byte >> 4 if group % 2 else byte & 15) + 16 * (high[place] >> group & 1)
        expected.append(d * scale * code - smallest * minimum)
    assert torch.allclose(q5k.decode(data, 256, torch.float32)[0], torch.tensor(expected), atol=1e-7)
