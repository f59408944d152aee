"""HLWQ (Hadamard-Lloyd Weight Quantization, formerly PolarQuant): reading, decoding, making and checking checkpoints.

import hlwq_core
ckpt = hlwq_core.open_checkpoint("models/hlwq/LTX-2.3-22B-HLWQ-Q5")
weight = ckpt.decode(ckpt.names()[0])

What is public stands in `__all__` and in docs/library.md; all else may change.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

try:
    from .checkpoints.checkpoint import Checkpoint, open_checkpoint
    from .format.packed import LayerInfo, PackedLayer
except ModuleNotFoundError as error:
    # `python -m hlwq_core` comes here before its own module: with the system's Python a newcomer would meet a traceback.
    if "hlwq_core" not in sys.orig_argv:
        raise
    from .errors import missing_module

    print(missing_module(error), file=sys.stderr)
    raise SystemExit(2) from None
from .errors import HLWQError

if TYPE_CHECKING:
    from .tools.download import download
    from .tools.inspect import inspect
    from .tools.quantize import quantize
    from .tools.repair import repair
    from .tools.verify import verify

__version__ = "0.1.0"
__all__ = [
    "Checkpoint",
    "HLWQError",
    "LayerInfo",
    "PackedLayer",
    "__version__",
    "download",
    "inspect",
    "open_checkpoint",
    "quantize",
    "repair",
    "verify",
]

# The tools are imported when they are first asked for: opening a checkpoint needs none of them.
_TOOLS = ("download", "inspect", "quantize", "repair", "verify")


def __getattr__(name: str) -> Any:
    if name in _TOOLS:
        return getattr(importlib.import_module(f".tools.{name}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
