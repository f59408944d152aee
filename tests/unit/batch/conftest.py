"""A fake ComfyUI that batches start, and calls that can be killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hlwq_core import cli

from .fake_comfyui import WORKFLOW


class Place:
    """A folder with a fake ComfyUI, its workflow, and what a batch makes.

    Attributes:
        output: where the outputs go.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.comfyui = folder / "ComfyUI"
        (self.comfyui / "comfy").mkdir(parents=True)
        (self.comfyui / "input").mkdir()
        (self.comfyui / "custom_nodes").mkdir()
        (self.comfyui / "nodes.py").touch()
        shutil.copy(Path(__file__).with_name("fake_comfyui.py"), self.comfyui / "main.py")
        self.workflow = folder / "workflow.json"
        self.workflow.write_text(json.dumps(WORKFLOW))
        self.runs, self.pids = folder / "runs", folder / "pids"
        self.output = folder / "out"

    def jobs(self, *lines: str, name: str = "jobs.txt") -> Path:
        path = self.folder / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def arguments(self, jobs: Path, *more: str) -> list[str]:
        words = ["batch", str(jobs), "--workflow", str(self.workflow), "--output", str(self.output), *more]
        if not {"--server", "--ray"} & set(more):
            words += [] if {"--workers", "--gpus"} & set(more) else ["--workers", "2"]
        return words if "--server" in more else [*words, "--comfyui", str(self.comfyui)]

    def call(self, jobs: Path, *more: str) -> int:
        """Run the command in this process."""
        return cli.main(self.arguments(jobs, *more))

    def fork(self, words: list[str]) -> int:
        """Run the command in a child; its process number."""
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                os.setsid()
                log = os.open(self.folder / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
                os.dup2(log, 1)
                os.dup2(log, 2)
                sys.stdout = open(1, "w", buffering=1, closefd=False)
                sys.stderr = open(2, "w", buffering=1, closefd=False)
                code = cli.main(words)
            finally:
                os._exit(code)
        return pid

    def made(self) -> dict[str, str]:
        """The outputs: their texts by their names."""
        return {path.name: path.read_text() for path in sorted(self.output.glob("*.mp4"))}

    def ran(self) -> list[str]:
        return self.runs.read_text().splitlines() if self.runs.exists() else []

    def alive(self) -> list[int]:
        """Fake ComfyUIs that still run."""
        found = []
        for pid in self.pids.read_text().split() if self.pids.exists() else []:
            try:
                state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if state != "Z" and b"main.py" in command:
                found.append(int(pid))
        return found

    def none_alive(self, patience: float = 10) -> bool:
        end = time.monotonic() + patience
        while self.alive() and time.monotonic() < end:
            time.sleep(0.02)
        return not self.alive()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    place = Place(tmp_path)
    temp = tmp_path / "temp"
    temp.mkdir()
    monkeypatch.setenv("FAKE_RUNS", str(place.runs))
    monkeypatch.setenv("FAKE_PIDS", str(place.pids))
    monkeypatch.setenv("TMPDIR", str(temp))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield place
    for pid in place.alive():
        os.kill(pid, signal.SIGKILL)
