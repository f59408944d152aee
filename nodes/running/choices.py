"""What a user chooses of how a model is loaded and run: one object, from the loader's inputs to whoever heeds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

AUTO = "auto"
EXACT, FAST = "exact", "fast"
MODES = (EXACT, FAST)


@dataclass(frozen=True)
class Choices:
    """The loader's inputs.

    Attributes:
        backend: what decodes the weights: `auto`, or a name of `backends.names()`.
        codebook, bit_order: `auto` finds them in the data.
        pack_rest: also pack the large linear layers that the checkpoint leaves dense.
        mode: `exact`, or `fast` to multiply in 8 bits where the device can.
        attention: `auto`, or another name of `faster_attention.NAMES`.
        record_blocks: replay the blocks as a CUDA graph where that pays.
        keep_decoded: keep decoded weights in video memory that nobody else wants.
        load_at_once: read the files to the card at once, where all of the model fits.
    """

    backend: str = AUTO
    codebook: str = AUTO
    bit_order: str = AUTO
    pack_rest: bool = False
    mode: str = EXACT
    attention: str = AUTO
    record_blocks: bool = True
    keep_decoded: bool = True
    load_at_once: bool = True

    @property
    def version(self) -> str | None:
        """The codebook that was insisted on."""
        return None if self.codebook == AUTO else self.codebook

    @property
    def order(self) -> str | None:
        """The bit order that was insisted on."""
        return None if self.bit_order == AUTO else self.bit_order


DEFAULT = Choices()
# Where they are kept: a model's attribute, a patcher's attachment.
KEY = "hlwq_choices"


def note(model: Any, choices: Choices) -> None:
    """Keep them with a model, for its patchers."""
    setattr(model, KEY, choices)


def of(model: Any) -> Choices:
    """What was chosen for a model."""
    return model.__dict__.get(KEY, DEFAULT)
