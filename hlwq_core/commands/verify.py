from __future__ import annotations

import argparse
from typing import Any

from ..terminal.output import as_json


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "verify",
        help="check a checkpoint, alone or against the original",
        description="Check structure, norms, the codes of every layer, and checksums where they are known; with the "
        "original also how far each layer is from it. Exit code: 0 sound, 1 problems were found, 2 could not check.",
        epilog="example: python -m hlwq_core verify models/hlwq/LTX-2.3-22B-HLWQ-Q5 --against ltx-2.3-22b-dev.safetensors",
    )
    parser.add_argument("path", metavar="PATH", help="the checkpoint's folder or file")
    parser.add_argument("--against", metavar="ORIGINAL", help="the dense model: a .safetensors file or a folder")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default auto)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    from ..terminal.progress import TerminalProgress
    from ..tools.verify import verify

    with TerminalProgress(quiet=args.json) as progress:
        result = verify(args.path, args.against, device=args.device, progress=progress)
    print(as_json(result.to_dict()) if args.json else result.text())
    return 0 if result.ok else 1
