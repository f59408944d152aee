"""A codebook is a file and its name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

REPO = Path(__file__).resolve().parents[3]
USE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch
from pathlib import Path
from safetensors.torch import save_file
import hlwq_core
from hlwq_core.codec.codec import encode
from hlwq_core.tools.quantize import quantize
folder = Path(sys.argv[1])
weights = {f"layers.{i}.proj.weight": torch.randn(256, 1024, generator=torch.Generator().manual_seed(i)) for i in range(3)}
save_file(weights, folder / "dense.safetensors")
report = quantize(folder / "dense.safetensors", folder / "made", rules="plain", codebook="wide", device="cpu")
ckpt = hlwq_core.open_checkpoint(folder / "made")
name = ckpt.names()[0]
forced = hlwq_core.open_checkpoint(folder / "made", codebook="wide")
print(json.dumps({
    "found": ckpt.info(name).codebook,
    "same": bool(torch.equal(ckpt.decode(name, torch.float32), encode(weights[name], 5, "wide").decode())),
    "forced": bool(torch.equal(forced.decode(name), ckpt.decode(name))),
    "error": report.relative_error,
}))
"""


def test_a_new_codebook_is_a_file_and_its_name(tmp_path: Path) -> None:
    """In a copy of the library: it encodes, its checkpoints are recognised by their data, and it can be insisted on."""
    shutil.copytree(REPO / "hlwq_core", tmp_path / "hlwq_core", ignore=shutil.ignore_patterns("__pycache__"))
    levels = {str(bits): torch.linspace(-4, 4, 1 << bits) for bits in range(2, 9)}
    save_file(levels, tmp_path / "hlwq_core" / "data" / "codebooks" / "wide.safetensors")
    module = tmp_path / "hlwq_core" / "format" / "codebook.py"
    module.write_text(
        module.read_text().replace('VERSIONS = ("infinite", "finite")', 'VERSIONS = ("infinite", "finite", "wide")')
    )
    done = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path)], capture_output=True, text=True, timeout=200, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["found"] == "wide" and found["same"] and found["forced"] and found["error"] < 0.02
