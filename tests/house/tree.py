"""A copy of the code with one thing added: new files, and one line changed elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


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
