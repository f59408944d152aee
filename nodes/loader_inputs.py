"""The inputs that every loader of a packed diffusion model has: how its codes are read, and what decodes them."""

from __future__ import annotations

from comfy_api.latest import io

from ..hlwq_core import backends
from ..hlwq_core.format.codebook import VERSIONS
from .model_loading import EXACT, FAST

AUTO = "auto"


def decoding_inputs() -> list[io.Input]:
    """`backend`, `codebook`, `bit_order`, `pack_rest` and `mode`."""
    return [
        io.Combo.Input(
            "backend",
            options=[AUTO, *reversed(backends.names())],
            default=AUTO,
            tooltip="What decodes the weights. auto takes the fastest one that runs here; eager runs everywhere.",
        ),
        io.Combo.Input(
            "codebook",
            options=[AUTO, *VERSIONS],
            default=AUTO,
            optional=True,
            advanced=True,
            tooltip="The table that codes are looked up in. Files do not name it; auto finds it in the data.",
        ),
        io.Combo.Input(
            "bit_order",
            options=[AUTO, "msb", "lsb"],
            default=AUTO,
            optional=True,
            advanced=True,
            tooltip="How codes lie in their bytes: msb is the first code in the top bits. auto finds it in the data.",
        ),
        io.Boolean.Input(
            "pack_rest",
            default=False,
            optional=True,
            advanced=True,
            tooltip="Also pack the large linear layers that the checkpoint keeps in BF16. Saves memory, costs a "
            "minute or more at loading and a little quality.",
        ),
        io.Combo.Input(
            "mode",
            options=[EXACT, FAST],
            default=EXACT,
            optional=True,
            tooltip="exact decodes every weight. fast multiplies in 8 bits (FP8 from Ada on, INT8 on Turing and "
            "Ampere), attends by cuDNN on Hopper and later, and replays the blocks as a CUDA graph at small sizes: "
            "quicker, with a small error of its own. Where the card cannot, the report says so and decoding stays "
            "exact.",
        ),
    ]
