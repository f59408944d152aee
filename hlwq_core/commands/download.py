from __future__ import annotations

import argparse
from typing import Any

from ..models.families import repositories


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "download",
        help="fetch a published checkpoint",
        description="Fetch a checkpoint from the Hugging Face hub: only the files that are needed, resumed where it "
        "stopped, compared with the hub's sizes and checksums. HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are honoured.",
        epilog="example: python -m hlwq_core download --to ComfyUI/models/hlwq/LTX-2.3-22B-HLWQ-Q5",
    )
    parser.add_argument(
        "repository", nargs="?", metavar="REPO", help=f"owner/name (default {' or '.join(repositories())})"
    )
    parser.add_argument("--to", metavar="DIR", help="folder (default models/hlwq/NAME of the ComfyUI around this pack)")
    parser.add_argument("--revision", default="main", help="branch, tag or commit (default main)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    from ..terminal.output import as_json
    from ..terminal.progress import TerminalProgress
    from ..tools.download import download

    with TerminalProgress(quiet=args.json) as progress:
        result = download(args.repository, args.to, revision=args.revision, progress=progress)
    if args.json:
        print(as_json(result.to_dict()))
    else:
        print(f"{result.text()}\nnext: python -m hlwq_core inspect {result.folder}")
    return 0
