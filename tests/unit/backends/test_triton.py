"""The Triton backend agrees with eager."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .layers import VARIANTS

TRITON = """
import os
os.environ["TRITON_INTERPRET"] = "1"
import torch
from hlwq_core.backends import proof, triton
for bits, packing in {variants}:
    for dtype, add in ((torch.bfloat16, False), (torch.float16, True)):
        proof.prove(triton.launch, torch.device("cpu"), bits, packing, dtype, add)
print("proven")
"""


def test_the_triton_kernel_computes_what_eager_does():
    """In Triton's interpreter, which a process chooses as it imports the package."""
    pytest.importorskip("triton")
    command = [sys.executable, "-c", TRITON.format(variants=VARIANTS)]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=200)
    assert done.stdout.strip() == "proven", done.stderr[-2000:]
