from __future__ import annotations

import argparse
from typing import Any

from ..terminal.output import as_json
from ..terminal.progress import TerminalProgress
from ..tools.verify import Verification, verify


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
    with TerminalProgress(quiet=args.json) as progress:
        result = verify(args.path, args.against, device=args.device, progress=progress)
    print(as_json(result.to_dict()) if args.json else text(result))
    return 0 if result.ok else 1


def text(result: Verification) -> str:
    """The result for people."""
    lines = [f"{result.path}: {'sound' if result.ok else f'{len(result.problems)} problems'}"]
    if result.layers:
        rms = f", median RMS {result.median_rms:.4f}" if result.median_rms is not None else ""
        lines.append(f"  {len(result.layers)} layers checked{rms}; {result.checksums} files match their sha256")
    lines += [f"  note: {note}" for note in result.notes]
    if result.overall:
        lines.append(f"  {'':60} {'cosine':>9} {'rel. error':>11}")
        for name, figures in [*result.components.items(), ("all", result.overall)]:
            lines.append(f"  {name:60} {figures['cosine']:9.6f} {figures['relative_error']:11.3e}")
        lines.append("  worst layers:")
        for layer in result.layers[:5]:
            if layer.relative_error is not None:
                lines.append(f"    {layer.relative_error:.3e}  cosine {layer.cosine:.6f}  {layer.name}")
    for problem in result.problems[:20]:
        lines.append(f"  {problem.kind}: {problem.what}\n    {problem.where}")
        if problem.fix:
            lines.append(f"    what to do: {problem.fix}")
    return "\n".join(lines)
