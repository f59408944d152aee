"""The same seed, file and backend: the same latents, bit by bit, twice in one process and in another one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

REPO = Path(__file__).resolve().parents[2]
# Where this file's first test, in a process of its own, leaves its latents.
INTO = "HLWQ_LATENTS"


def latents(load, sample, seed: int = 3) -> dict[str, torch.Tensor]:
    """Of a model that was loaded anew, exact and in 8 bits."""
    from comfyui_hlwq.hlwq_core.running import fast
    from comfyui_hlwq.nodes.running import as_chosen

    made = {}
    for kind in ("exact", "int8"):
        model = load()[0]
        least = fast.MIN_ROWS
        if kind == "int8":
            fast.MIN_ROWS = 4  # the tiny model never has as many rows as pay on a GPU
            as_chosen.make_fast(model.model, kind)
        try:
            parts = sample(model, seed=seed, steps=2)
        finally:
            fast.MIN_ROWS = least
        made |= {f"{kind} {i}": part.contiguous() for i, part in enumerate(parts)}
    return made


@pytest.mark.skipif(INTO not in os.environ, reason="for the test below, which calls it in another process")
def test_leave_latents(load, sample):
    save_file(latents(load, sample), os.environ[INTO])


def test_the_same_latents_in_two_processes(load, sample, tmp_path):
    first = latents(load, sample)
    latents(load, sample, seed=4)
    again = latents(load, sample)
    command = [sys.executable, "-m", "pytest", "-q", f"{Path(__file__)}::test_leave_latents", "-p", "no:cacheprovider"]
    variables = os.environ | {INTO: str(tmp_path / "latents"), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, cwd=REPO, env=variables, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    elsewhere = load_file(tmp_path / "latents")
    assert first.keys() == elsewhere.keys()
    for name, part in first.items():
        assert torch.equal(part, again[name]), f"{name} differs within a process"
        assert torch.equal(part, elsewhere[name]), f"{name} differs in another process"
    assert not torch.equal(first["exact 0"], first["int8 0"]), "nothing was fast"
