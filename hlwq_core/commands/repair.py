from __future__ import annotations

import argparse
from typing import Any

from ..output import as_json
from ..progress import TerminalProgress
from ..quantize import NORMS
from ..repair import repair


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "repair",
        help="complete a checkpoint from the original",
        description="Quantize the layers that are missing, and copy the other tensors that are missing, into new files. "
        "Nothing that exists is touched.",
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
    with TerminalProgress(quiet=args.json) as progress:
        result = repair(
            args.path, args.original, rules=args.rules, norms=args.norms, device=args.device, progress=progress
        )
    if args.json:
        print(as_json(result.to_dict()))
        return 0
    if not result.files:
        print(f"{result.path}: nothing is missing")
        return 0
    print(f"{result.path}: {len(result.quantized)} layers quantized, {len(result.kept)} other tensors copied, into")
    for file in result.files:
        print(f"  {file}")
    print(f"next: python -m hlwq_core verify {result.path} --against {args.original}")
    return 0
