"""Every check of the project, on an environment that is made at the first start.

    python3 scripts/test.py                      ruff, mypy and all tests
    python3 scripts/test.py tests/unit -k pack   only pytest, with these arguments
    python3 scripts/test.py --comfyui PATH       the same with another ComfyUI, in an environment that its
                                                 requirements.txt makes (also: the variable COMFYUI_PATH)
    python3.12 scripts/test.py                   the same on another Python

Browser tests drive the system's Chromium (Debian: apt install chromium); without one they are skipped.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import subprocess
import time
from pathlib import Path

from environment import Environment, SetupError, add_arguments, add_package_arguments, ensure, say

REPO = Path(__file__).resolve().parents[1]

# Whatever hangs, the run ends and says which tests passed until then.
DEADLINE = 2900


def types(cache: Path) -> tuple[list[str], Path]:
    """Arguments of mypy, and where it has to start: this folder is a package whose name (ComfyUI-HLWQ) cannot be imported, so it
    is looked at through a link."""
    arguments = ["--config-file", str(REPO / "pyproject.toml"), "--cache-dir", str(cache)]
    folder = cache / "packages" / hashlib.sha256(str(REPO).encode()).hexdigest()[:8]
    link = folder / "comfyui_hlwq"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(REPO, target_is_directory=True)
    except OSError as error:  # Windows lets not everybody make links
        say(f"mypy: hlwq_core alone, no link can be made: {error}")
        return arguments, REPO
    return [*arguments, "-p", "comfyui_hlwq.hlwq_core", "-p", "comfyui_hlwq.nodes"], folder


def checks(environment: Environment) -> list[str]:
    """Run the static checks; the names of those that failed."""
    python = str(environment.python)
    failed = []
    typed, folder = types(environment.cache / "mypy")
    for name, arguments, where in (
        ("ruff check", ["ruff", "check"], REPO),
        ("ruff format", ["ruff", "format", "--check"], REPO),
        ("mypy", ["mypy", *typed], folder),
    ):
        begun = time.monotonic()
        code = subprocess.run([python, "-m", *arguments], cwd=where, timeout=400).returncode
        say(f"{name}: {'ok' if code == 0 else 'FAILED'} ({time.monotonic() - begun:.0f} s)")
        if code:
            failed.append(name)
    return failed


def pytest(environment: Environment, arguments: list[str], deadline: float = DEADLINE) -> int:
    """Run pytest; after the deadline interrupt it, so that it tears down and sums up, then end it by force."""
    variables = os.environ | {
        "COMFYUI_PATH": str(environment.comfyui),
        "HLWQ_CACHE": str(environment.cache),
        "PYTHONUNBUFFERED": "1",
    }
    command = [str(environment.python), "-m", "pytest", *arguments]
    process = subprocess.Popen(command, cwd=REPO, env=variables)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())  # then it tears down, and we go on waiting
    waits = [(deadline, signal.SIGINT), (90, signal.SIGTERM), (10, signal.SIGKILL)]
    try:
        for seconds, then in waits:
            try:
                return process.wait(seconds)
            except subprocess.TimeoutExpired:
                say(f"pytest still runs after {seconds:.0f} s: {then.name}")
                process.send_signal(then)
        return process.wait()
    except KeyboardInterrupt:  # the terminal told pytest too: let it tear down
        try:
            return process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            return 130


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_arguments(parser)
    add_package_arguments(parser)
    parser.add_argument(
        "--deadline", type=float, default=DEADLINE, help="seconds that pytest has (default: %(default)s)"
    )
    args, rest = parser.parse_known_args()
    try:
        environment = ensure(args.comfyui, args.python, args.wanted, args.unwanted)
    except SetupError as error:
        say(f"error: {error}")
        return 1
    failed = [] if rest else checks(environment)
    if failed:
        say(f"FAILED before any test: {', '.join(failed)}")
    code = pytest(environment, rest or ["-q", "--durations=15"], args.deadline)
    return code or len(failed)


if __name__ == "__main__":
    raise SystemExit(main())
