"""What the benchmarks share: the machine's description, timing, results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, str]:
    """Machine, versions and command, for every result."""
    import torch

    found = {
        "cpu": _cpu_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "command": " ".join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d"),
    }
    if version := _comfyui():
        found["comfyui"] = version
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _comfyui() -> str | None:
    """The version of the ComfyUI that COMFYUI_PATH names, if any."""
    try:
        text = (Path(os.environ["COMFYUI_PATH"]) / "comfyui_version.py").read_text("utf-8")
    except (KeyError, OSError):
        return None
    version = re.search(r"\d+\.\d+[\w.]*", text)
    return version[0] if version else None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def save(name: str, figures: dict[str, Any], summary: dict[str, float | None]) -> None:
    """Write `results/NAME.json`, and the figures of issue-wide interest into `results/summary.json`."""
    RESULTS.mkdir(exist_ok=True)
    out = Path(os.environ.get("OUT", RESULTS))
    (out / f"{name}.json").write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n")
    path = out / "summary.json"
    if not path.exists():
        path = RESULTS / "summary.json"
    flat = json.loads(path.read_text()) if path.exists() else {}
    flat.update(summary)
    (out / "summary.json").write_text(json.dumps(dict(sorted(flat.items())), indent=1) + "\n")


def seconds(function: Callable[[], Any], repeat: int = 20, warm: int = 3, device: str = "cpu") -> float:
    """Median time of one call."""
    import torch

    times = []
    for i in range(warm + repeat):
        if device == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        if i >= warm:
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


def parser(description: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)


def hold(free_gib: float) -> Any:
    """A second process that holds all but `free_gib` of the card's memory, until it is no longer referenced."""
    code = (
        "import sys, torch; free, _ = torch.cuda.mem_get_info(); "
        f"kept = torch.empty(max(0, free - int({free_gib} * 2**30)), dtype=torch.uint8, device='cuda'); "
        "print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline().strip() == "held"
    return process
