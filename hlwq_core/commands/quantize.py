from __future__ import annotations

import argparse
from typing import Any

from ..codec.options import LAYOUTS, NORMS
from ..errors import InputError
from ..models.recipes import AUTO, recipe_names
from ..terminal.output import as_json


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "quantize",
        help="make an HLWQ checkpoint from a dense one",
        description="Make an HLWQ checkpoint from any safetensors checkpoint or folder, layer by layer. "
        "A run that was interrupted goes on when it is started again.",
        epilog="example: python -m hlwq_core quantize ltx-2.3-22b-dev.safetensors models/hlwq/LTX-2.3-22B-HLWQ-Q5 "
        "--norms search --rules ltx23-compact",
    )
    parser.add_argument("source", metavar="SRC", help="a .safetensors file, or a folder of them")
    parser.add_argument("target", metavar="DST", help="a folder (published layout) or a .safetensors file (single)")
    parser.add_argument("--bits", type=int, default=5, help="2, 3, 4, 5, 6 or 8 (default 5)")
    parser.add_argument(
        "--norms",
        choices=NORMS,
        default="author",
        help="author: as published files; search: a third less error in the same size (default author)",
    )
    parser.add_argument(
        "--rules",
        default=AUTO,
        help=f"recipe: {', '.join(recipe_names())}, or a JSON file (default: the model's own, plain for an unknown one)",
    )
    parser.add_argument(
        "--layout", choices=LAYOUTS, default="published", help="folder or single file (default published)"
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="what the layers' inputs look like (HLWQ Calibrate, or the command calibrate): code for the least error of their "
        "outputs, and correct biases",
    )
    parser.add_argument(
        "--max-error",
        type=float,
        metavar="E",
        help="the fewest bits for each layer at which its relative squared error is at most E, e.g. 2e-3",
    )
    parser.add_argument(
        "--mean-bits",
        type=float,
        metavar="B",
        help="bits where they matter, B of them a weight in the mean, e.g. 4.6: by --sensitivity, or by --calibration",
    )
    parser.add_argument("--sensitivity", metavar="FILE", help="what each layer's loss is, of the command fisher")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default auto)")
    parser.add_argument(
        "--force", action="store_true", help="replace an HLWQ checkpoint at the target, and nothing else"
    )
    parser.add_argument("--plan", action="store_true", help="only tell what would be made, and how large")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    if args.plan:
        return _print_plan(args)
    from ..terminal.progress import TerminalProgress
    from ..tools.quantize import quantize

    with TerminalProgress(quiet=args.json) as progress:
        report = quantize(
            args.source,
            args.target,
            bits=args.bits,
            norms=args.norms,
            rules=args.rules,
            layout=args.layout,
            device=args.device,
            calibration=args.calibration,
            max_error=args.max_error,
            mean_bits=args.mean_bits,
            sensitivity=args.sensitivity,
            force=args.force,
            progress=progress,
        )
    print(as_json(report.to_dict()) if args.json else report.text())
    return 0


def _print_plan(args: argparse.Namespace) -> int:
    if args.max_error is not None or args.mean_bits is not None:
        raise InputError(
            "what these bits make is known when the layers were encoded",
            expected="--plan with a recipe and --bits",
            fix="leave out --plan: the report tells how many layers got how many bits",
        )
    from ..checkpoints.dense import open_dense
    from ..models.recipes import planned_size
    from ..tools.quantize import recipe_for
    from ..tools.quantize_report import as_size

    source = open_dense(args.source)
    size = planned_size(recipe_for(source, args.rules), source.described(), args.bits)
    if args.json:
        print(as_json({**vars(size), "total": size.total}))
    else:
        print(f"{size.layers} layers, {size.weights / 1e9:.3f} billion weights")
        print(
            f"  quantized  {as_size(size.codes + size.norms)}\n  kept       {as_size(size.kept)}\n  in all     {as_size(size.total)}"
        )
    return 0
