from __future__ import annotations

import argparse
import json
from typing import Any

from ..inspect import coverage_picture, inspect, table


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "inspect",
        help="what a checkpoint is, and whether it is whole",
        description="Tell variant, bits, codebook, sizes and what is missing, from headers and a small sample. "
        "Exit code: 0 complete, 1 not complete, 2 could not look.",
        epilog="example: python -m hlwq_core inspect models/hlwq/LTX-2.3-22B-HLWQ-Q5 --picture coverage.png",
    )
    parser.add_argument("path", metavar="PATH", help="the checkpoint's folder or file")
    parser.add_argument("--picture", metavar="PNG", help="also draw blocks × layers into this file")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    found = inspect(args.path)
    if args.picture:
        coverage_picture(found).save(args.picture)
    print(json.dumps(found.to_dict()) if args.json else table(found))
    return 0 if found.complete else 1
