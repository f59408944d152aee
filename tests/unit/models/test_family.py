"""A model family is a file and a line: recognised, quantized by its recipe, known whole and known incomplete."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]

FAMILY = '''
"""Toy: a model of two matrices a block, with a head that may lie in a file of its own."""

from .family import DIFFUSION, TRANSFORMER, Family, Limits, Part

HEAD = "head"


def needed(config):
    blocks = range(config["transformer"]["num_layers"])
    names = [f"{DIFFUSION}toys.{n}.{kind}.weight" for n in blocks for kind in ("up", "down")]
    return {TRANSFORMER: [*names, f"{DIFFUSION}toy_norm.weight"], HEAD: ["toy_head.weight"]}


FAMILY = Family(
    key="toy",
    name="Toy",
    full="Toy 1M",
    is_one=lambda names: any(".toys." in name for name in names),
    needed=needed,
    parts=(Part(TRANSFORMER, (DIFFUSION,)), Part(HEAD, ("toy_head.",), "Load Head")),
    config=lambda: {"transformer": {"num_layers": 2}},
    recipe="plain",
    limits=Limits(size=16),
)
'''

CODE = """
import torch
from safetensors.torch import save_file
import hlwq_core

names = [f"model.diffusion_model.toys.{n}.{kind}.weight" for n in range(2) for kind in ("up", "down")]
tensors = {name: torch.randn(256, 256) for name in names} | {"model.diffusion_model.toy_norm.weight": torch.ones(256)}

for prefix in ("model.diffusion_model.", ""):
    given = {name.replace("model.diffusion_model.", prefix): value for name, value in tensors.items()}
    save_file(given, "dense.safetensors")
    report = hlwq_core.quantize("dense.safetensors", "toy.safetensors", layout="single", force=True)
    assert (report.model, report.holds, report.absent) == ("Toy", ["transformer"], {"head": "Load Head"}), report
    found = hlwq_core.inspect("toy.safetensors")
    assert found.complete and found.model == "Toy" and found.absent == {"head": "Load Head"}, found
    assert hlwq_core.verify("toy.safetensors").ok
    lost = f"{prefix}toys.1.up.weight"
    save_file({name: value for name, value in given.items() if name != lost}, "less.safetensors")
    hlwq_core.quantize("less.safetensors", "less_hlwq.safetensors", layout="single", force=True)
    found = hlwq_core.inspect("less_hlwq.safetensors")
    assert not found.complete and found.missing == [lost], found.missing
    assert not hlwq_core.verify("less_hlwq.safetensors").ok
print("used")
"""


class Tree:
    """A copy of `hlwq_core` in a folder of its own.

    Attributes:
        root: the folder.
    """

    def __init__(self, root: Path):
        self.root = root
        shutil.copytree(
            REPO / "hlwq_core", root / "hlwq_core", ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
        )

    def add(self, name: str, text: str) -> None:
        """A new file; it must not be there."""
        path = self.root / name
        assert not path.exists(), name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def change_a_line(self, name: str, old: str, new: str) -> None:
        """One line of a file, by a part of it."""
        path = self.root / name
        text = path.read_text(encoding="utf-8")
        (line,) = [line for line in text.splitlines() if old in line]
        assert "\n" not in new
        path.write_text(text.replace(line, line.replace(old, new)), encoding="utf-8")

    def run(self, code: str) -> str:
        """What Python prints that runs this code with the copy."""
        variables = os.environ | {"PYTHONPATH": str(self.root)}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.root, env=variables, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout


def test_a_family(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.add("hlwq_core/models/toy.py", FAMILY)
    tree.change_a_line("hlwq_core/models/families.py", "_TABLE = (", '_TABLE = ("toy", ')
    assert tree.run(CODE).strip() == "used"
