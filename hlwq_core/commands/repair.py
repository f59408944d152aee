from __future__ import annotations

import argparse
from typing import Any

from ..codec.options import NORMS
from ..terminal.output import as_json


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "repair",
        help="complete a checkpoint from the original",
        description="Quantize the layers that are missing, and copy the other tensors that are missing, into new files. "
        "Nothing that exists is touched. Exit code: 0 whole, 1 something is still missing, 2 an error.",
        epilog="example: python -m hlwq_core repair models/hlwq/LTX-2.3-22B-HLWQ-Q5 --from ltx-2.3-22b-dev.safetensors",
    )
    parser.add_argument("path", metavar="PATH", help="the checkpoint's folder")
    parser.add_argument("--from", dest="original", metavar="ORIGINAL", required=True, help="the dense model")
    parser.add_argument("--rules", help="recipe for the missing layers (default: as their fellows in other blocks)")
    parser.add_argument("--norms", choices=NORMS, help="default: as the checkpoint has")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default auto)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    from ..terminal.progress import TerminalProgress
    from ..tools.repair import repair

    with TerminalProgress(quiet=args.json) as progress:
        result = repair(
            args.path, args.original, rules=args.rules, norms=args.norms, device=args.device, progress=progress
        )
    print(as_json(result.to_dict()) if args.json else result.text(args.original))
    return 1 if result.still_missing else 0
