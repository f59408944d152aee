"""`doctor`: what there is, what is wrong, and what to do; text for a bug report."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Describe the command's options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "doctor",
        help="what is there, what is wrong, and what to do",
        description="Tell which ComfyUI, torch, card, driver, backend, packages, folders and models there are, and what is wrong. "
        "Made to be pasted into a bug report: no token and no user name is in it. Exit code: 0 nothing is wrong, 1 something is.",
        epilog="example: python -m hlwq_core doctor --comfyui ~/ComfyUI",
    )
    parser.add_argument(
        "--comfyui", metavar="FOLDER", help="ComfyUI (default: COMFYUI_PATH, or the one around this pack)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    """Print what was found; 0 if nothing is wrong."""
    from .. import __version__
    from ..terminal.output import as_json
    from ..tools.doctor import examine

    found = examine(__version__, args.comfyui)
    print(as_json(found.to_dict()) if args.json else found.text())
    return 1 if found.problems else 0
