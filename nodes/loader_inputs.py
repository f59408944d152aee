"""The inputs that every loader of a packed diffusion model has, the fields of `choices.Choices`: how its codes are read, what
decodes them, and how the model runs."""

from __future__ import annotations

from comfy_api.latest import io

from ..hlwq_core import backends
from ..hlwq_core.format.codebook import VERSIONS
from .running import faster_attention
from .running.choices import AUTO, EXACT, MODES


def decoding_inputs() -> list[io.Input]:
    """One input for each field of `Choices`, in their order."""
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
            options=list(MODES),
            default=EXACT,
            optional=True,
            tooltip="exact decodes every weight. fast multiplies in 8 bits (FP8 from Ada on, INT8 on Turing and "
            "Ampere): quicker, with a small error of its own. Where the card cannot, the report says so and decoding stays "
            "exact.",
        ),
        io.Combo.Input(
            "attention",
            options=list(faster_attention.NAMES),
            default=AUTO,
            optional=True,
            advanced=True,
            tooltip="auto attends by cuDNN on Hopper and later, the same arithmetic rounded otherwise, unless ComfyUI was "
            "started with an attention of its own or a node sets one. comfy_kitchen and sage attend in 8 bits, with a "
            "small error. Where the one chosen is not to be had, the report says why and ComfyUI's is used.",
        ),
        io.Boolean.Input(
            "record_blocks",
            default=True,
            optional=True,
            advanced=True,
            tooltip="Replay the transformer blocks as one CUDA graph at small sizes, where the processor is slower than the "
            "card. The same result, bit by bit.",
        ),
        io.Boolean.Input(
            "keep_decoded",
            default=True,
            optional=True,
            advanced=True,
            tooltip="Keep decoded weights in video memory that nothing else wants.",
        ),
        io.Boolean.Input(
            "load_at_once",
            default=True,
            optional=True,
            advanced=True,
            tooltip="Read the files to the card at once where the whole model fits; else ComfyUI brings layer by layer.",
        ),
    ]
