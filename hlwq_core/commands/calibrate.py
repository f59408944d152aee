"""`calibrate`: sample a few prompts with HLWQ Calibrate in the workflow, for `quantize --calibration`."""

from __future__ import annotations

import argparse
from typing import Any

from ..codec.options import MOMENTS
from . import generate


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Describe the command's options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "calibrate",
        help="gather what quantize --calibration needs, while a few prompts are sampled",
        description="Make videos as `generate` does, with the node HLWQ Calibrate behind the model's loader. It gathers what the "
        "inputs of the model's layers look like in models/hlwq/calibration/NAME.safetensors of that ComfyUI; a file of that name "
        "is gone on with. Give eight prompts or more, as different as what you make.",
        epilog="example: python -m hlwq_core calibrate mine --prompts prompts.txt --width 768 --height 512 --frames 97",
    )
    parser.add_argument("calibration", metavar="NAME", help="of the calibration")
    parser.add_argument(
        "--moments", choices=MOMENTS, default="blocks", help="see the node's help page (default blocks)"
    )
    generate.add_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Sample, and say where the calibration is; the exit codes of `generate`."""
    code = generate.run(args)
    if code == 0 and not args.json:
        print(f"calibration: models/hlwq/calibration/{args.calibration}.safetensors, in the folder of that ComfyUI")
    return code
