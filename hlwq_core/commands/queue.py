"""`queue`: run any workflow in API form, once or many times, and fetch what it makes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .generate import add_common, execute


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Describe the command's options."""
    parser = subparsers.add_parser(
        "queue",
        help="run a workflow in API form, once or many times",
        description="Run a workflow in API form (workflows/api/, or Export (API) in ComfyUI), follow it and fetch "
        "the files that it makes.",
        epilog="example: python -m hlwq_core queue workflow_api.json --count 20 --server --output videos",
    )
    parser.add_argument("workflow", type=Path, help="the workflow, in API form")
    parser.add_argument("--count", "-n", type=int, default=1, help="how many times (default: 1)")
    parser.add_argument(
        "--same-seed", action="store_true", help="leave the seeds as they are; else each run moves them on by one"
    )
    add_common(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the workflow; 0 if every run ended well, 1 if some failed, 130 if it was stopped."""
    from ..batch.several import Target, queue_requests

    # What is wrong with the options is said before ComfyUI is started.
    requests, labels = queue_requests(args.workflow, args.count, args.settings, args.same_seed)
    return execute(args, requests, labels, Target.of(args.output, args.count, None))
