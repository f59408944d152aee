"""HLWQ (Hadamard-Lloyd Weight Quantization, formerly PolarQuant): reading, decoding, making and checking checkpoints.

import hlwq_core
ckpt = hlwq_core.open_checkpoint("models/hlwq/LTX-2.3-22B-HLWQ-Q5")
weight = ckpt.decode(ckpt.names()[0])

What is public stands in `__all__` and in docs/library.md; all else may change.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .errors import HLWQError

if TYPE_CHECKING:
    from .checkpoints.checkpoint import Checkpoint, open_checkpoint
    from .format.packed import LayerInfo, PackedLayer
    from .tools.download import download
    from .tools.inspect import inspect
    from .tools.quantize import quantize
    from .tools.repair import repair
    from .tools.verify import verify

__version__ = "0.2.0"
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

# Where a public name is. It is imported when it is first asked for: opening a checkpoint needs no tool, and a command that only
# asks a server needs no torch, which takes seconds.
_PLACES = {
    "Checkpoint": "checkpoints.checkpoint",
    "LayerInfo": "format.packed",
    "PackedLayer": "format.packed",
    "download": "tools.download",
    "inspect": "tools.inspect",
    "open_checkpoint": "checkpoints.checkpoint",
    "quantize": "tools.quantize",
    "repair": "tools.repair",
    "verify": "tools.verify",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
