"""Asking for help, and asking a server, imports nothing that takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hlwq_core.cli import parser

REPO = Path(__file__).resolve().parents[3]
HEAVY = {"torch", "scipy", "av", "safetensors", "huggingface_hub", "ray", "PIL"}
COMMANDS = sorted(parser()._subparsers._group_actions[0].choices)  # type: ignore[union-attr,arg-type]


def imported(code: str, tmp_path: Path) -> set[str]:
    """The top-level modules that a Python has after `code`."""
    code += "\nimport json, sys; print('\\n' + json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    variables = {name: value for name, value in os.environ.items() if not name.startswith("COV_")}
    variables |= {"PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path, env=variables
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_of_every_command_imports_nothing_heavy(tmp_path: Path) -> None:
    calls = [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)]
    code = (
        "import contextlib\nfrom hlwq_core.cli import main\n"
        f"for call in {calls!r}:\n    with contextlib.suppress(SystemExit): main(call)\n"
    )
    found = imported(code, tmp_path)
    assert "hlwq_core" in found and not found & (HEAVY | {"aiohttp", "numpy"})


@pytest.mark.parametrize("command", [["generate", "--prompt", "x"], ["queue", str(REPO / "workflows" / "api")]])
def test_asking_a_server_imports_no_torch(command: list[str], tmp_path: Path) -> None:
    """Up to the request, which nobody answers."""
    if command[0] == "queue":
        command = ["queue", str(sorted(Path(command[1]).glob("*.json"))[0])]
    call = [*command, "--server", "http://127.0.0.1:9"]
    found = imported(f"from hlwq_core.cli import main\nassert main({call!r}) == 2", tmp_path)
    assert "aiohttp" in found and not found & HEAVY


def test_importing_the_library_imports_nothing_heavy(tmp_path: Path) -> None:
    assert not imported("import hlwq_core; hlwq_core.HLWQError", tmp_path) & HEAVY


def test_looking_into_a_video_imports_no_torch(tmp_path: Path) -> None:
    assert "torch" not in imported("from hlwq_core.media import probe", tmp_path)
