"""HLWQ (Hadamard-Lloyd Weight Quantization, formerly PolarQuant): reading, decoding, making and checking checkpoints.

import hlwq_core
ckpt = hlwq_core.open_checkpoint("models/hlwq/LTX-2.3-22B-HLWQ-Q5")
weight = ckpt.decode(ckpt.names()[0])
"""

import sys

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

__version__ = "0.1.0"
__all__ = ["Checkpoint", "HLWQError", "LayerInfo", "PackedLayer", "__version__", "open_checkpoint"]
