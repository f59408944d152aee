"""`completion`: a shell's completion of commands, options and choices; shtab makes it from the parser."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

SHELLS = ("bash", "zsh", "fish")
NAME = "hlwq"  # a word of its own for `python -m hlwq_core`: shells complete by the first one
ROOT = Path(__file__).absolute().parents[2]


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Describe the command's options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "completion",
        help="completion for bash, zsh or fish",
        description=f"Print a script that makes `{NAME}` a short name of `python -m hlwq_core` and completes its commands, options "
        "and choices. Needs the package shtab. Load the script in the shell's start file.",
        epilog='example: eval "$(python -m hlwq_core completion bash)"; in fish: python -m hlwq_core completion fish | source',
    )
    parser.add_argument("shell", choices=SHELLS)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    from ..errors import InputError

    try:
        import shtab
    except ImportError:
        raise InputError(
            "completion is made by shtab, which is not there",
            expected="the package shtab",
            found="none",
            fix=f"{sys.executable} -m pip install shtab",
        ) from None
    python = shlex.quote(sys.executable)
    program = f"env PYTHONPATH={shlex.quote(str(ROOT))} {python} -m hlwq_core"
    script = shtab.complete(args.parser(NAME), args.shell)
    if args.shell == "fish":
        print(f"function {NAME}; {program} $argv; end\n{script}")
    else:
        begin = "autoload -Uz compinit && compinit -u\n" if args.shell == "zsh" else ""
        print(f'{begin}{NAME}() {{ {program} "$@"; }}\n{script}')
    return 0
