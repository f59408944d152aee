from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..format.places import write_beside
from ..terminal.output import as_json

if TYPE_CHECKING:
    from ..tools.inspect import Inspection


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "inspect",
        help="what a checkpoint is, and whether it is whole",
        description="Tell variant, bits, codebook, sizes and what is missing, from headers and a small sample. "
        "Exit code: 0 complete, 1 not complete, 2 could not look.",
        epilog="example: python -m hlwq_core inspect models/hlwq/LTX-2.3-22B-HLWQ-Q5 --picture coverage.png",
    )
    parser.add_argument("path", metavar="PATH", help="the checkpoint's folder or file")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="also draw blocks × layers into this file")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    from ..tools.inspect import inspect, table

    if args.picture and args.picture.suffix.lower() != ".png":
        raise InputError(
            "the picture is a PNG file",
            file=args.picture,
            expected="a name that ends in .png",
            fix="let the name end in .png",
        )
    found = inspect(args.path)
    if args.picture:
        _save(found, args.picture)
    print(as_json(found.to_dict()) if args.json else table(found))
    return 0 if found.complete else 1


def _save(found: Inspection, file: Path) -> None:
    from ..tools.inspect import coverage_picture

    with write_beside(file) as out:
        coverage_picture(found).save(out, "PNG")
