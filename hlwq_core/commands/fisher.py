"""`fisher`: which layers need their bits, by gradients, for a model that can be run backward."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

from ..errors import InputError


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Describe the command's options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "fisher",
        help="find which layers need their bits, of a model that can be run backward",
        description="Run a model of yours backward over samples, and write a sensitivity file: what each layer's loss is at each "
        "number of bits. quantize --sensitivity FILE --mean-bits 4.6 gives layers bits by it. FILE.py:FUNCTION is your own "
        "Python: the function returns the model (torch.nn.Module) and the losses of samples, one after the other.",
        epilog="example: python -m hlwq_core fisher mine.py:calibration sensitivity.json",
    )
    parser.add_argument("function", metavar="FILE.py:FUNCTION", help="returns (model, iterable of scalar losses)")
    parser.add_argument("target", type=Path, metavar="OUT.json", help="the sensitivity file")
    parser.add_argument(
        "--prefix", default="", help="what stands before the module's names in the checkpoint's tensors"
    )
    parser.add_argument("--samples", type=int, default=64, help="at most so many (default 64)")
    parser.add_argument("--min-elements", type=int, default=16384, help="leave smaller weights out (default 16384)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    """Write the file; 0 if it was written."""
    import itertools

    import torch

    from ..codec.fisher import losses_by_gradients
    from ..terminal.output import as_json
    from ..terminal.progress import TerminalProgress
    from ..tools.bits import CHOICES, save_losses

    model, samples = _function(args.function)()
    layers = {
        f"{args.prefix}{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module.weight.numel() >= args.min_elements
    }
    with TerminalProgress(quiet=args.json) as progress:
        losses = losses_by_gradients(
            layers,
            itertools.islice(samples, args.samples),
            CHOICES,
            told=lambda text: progress(0, 1, text),
        )
    save_losses(args.target, losses, "fisher")
    most = sorted(losses, key=lambda name: -losses[name][4])[:5]
    if args.json:
        print(as_json({"target": str(args.target), "layers": len(losses), "most": most}))
    else:
        print(f"{args.target}: {len(losses)} layers; at 4 bits the loss rises most by")
        print("\n".join(f"  {losses[name][4]:.3e}  {name}" for name in most))
    return 0


def _function(given: str) -> Any:
    file, colon, name = given.rpartition(":")
    path = Path(file)
    if not colon or not path.is_file():
        raise InputError(
            "there is no such function", found=given, expected="FILE.py:FUNCTION", fix="correct the path of the file"
        )
    spec = importlib.util.spec_from_file_location("hlwq_fisher_function", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError("the file has no such function", file=path, found=name, fix="correct its name")
    return function
