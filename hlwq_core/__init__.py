"""HLWQ (Hadamard-Lloyd Weight Quantization, formerly PolarQuant): reading, decoding, making and checking checkpoints.

import hlwq_core
ckpt = hlwq_core.open_checkpoint("models/hlwq/LTX-2.3-22B-HLWQ-Q5")
weight = ckpt.decode(ckpt.names()[0])
"""

from .checkpoint import Checkpoint, LayerInfo, PackedLayer, open_checkpoint
from .errors import HLWQError

__version__ = "0.1.0"
__all__ = ["Checkpoint", "HLWQError", "LayerInfo", "PackedLayer", "__version__", "open_checkpoint"]
