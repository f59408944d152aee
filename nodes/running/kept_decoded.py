"""Decoded weights kept in video memory that nothing else wants, so that the next step need not decode them again.

ComfyUI's dynamic VRAM lends the memory: a reservation of its own, below every model's in priority. What other models or the
latents need is taken from it first, and a layer that lost its place is decoded as it is used, as without all this.

The loader's input `keep_decoded` turns it off; so does HLWQ_KEEP_DECODED=0, in an emergency.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch

from ...hlwq_core import switches
from ...hlwq_core.backends import eight_bit
from ...hlwq_core.format.codebook import BLOCK
from ...hlwq_core.running import decoders
from .. import compat
from . import choices

SWITCH = "HLWQ_KEEP_DECODED"
BYTES_A_VALUE = 2  # bfloat16 and float16; other dtypes are not kept

_log = logging.getLogger("hlwq")


def wanted(model: Any) -> bool:
    """Whether the user has not turned it off for a model, or for all, and ComfyUI lends memory as this module knows it."""
    chosen = choices.of(model).keep_decoded and not switches.off(SWITCH)
    return chosen and compat.works(compat.Feature.KEPT_DECODED)


class Place:
    """Where one layer's decoded weight is kept, as long as the memory is lent.

    Its view is a plain tensor even where nodes run, in inference mode: the threads of MultiGPU CFG Split, which are outside, write to it too.
    """

    __slots__ = ("_allocation", "_holds", "_kind", "_view")

    def __init__(self, allocation: tuple):
        self._allocation = allocation
        self._kind: Any = None  # what the view is for: a dtype, or a kind of 8 bits
        self._view: Any = None
        self._holds: tuple = ()

    def take(self, decode: decoders.ScratchDecoder, low_rank: Any) -> torch.Tensor | None:
        """The decoded weight, decoded into its place if it is not there; None if no memory is lent. `release` after use.

        Args:
            decode: the layer's decoder.
            low_rank: what it adds to the weight (`LowRank`), or None.
        """
        holds = self._fault(decode.dtype, low_rank)
        if holds is None:
            return None
        if self._view is None:
            rows, columns = decode.shape
            with torch.inference_mode(False):
                memory = compat.aimdo_to_tensor(self._allocation, decode.device)
                self._view = memory[: rows * columns * BYTES_A_VALUE].view(decode.dtype).view(rows, columns)
        if self._holds != holds:
            with self._let_go_if_it_fails():
                decode(None if low_rank is None else low_rank.factors(decode.device, decode.dtype), self._view)
            self._holds = holds
        return self._view

    def take_eight_bit(self, decode: decoders.EightBitDecoder) -> eight_bit.EightBit | None:
        """As `take`, in 8 bits."""
        holds = self._fault(decode.kind, None)
        if holds is None:
            return None
        if self._view is None:
            rows, padded = decode.rows, decode.padded
            with torch.inference_mode(False):
                memory = compat.aimdo_to_tensor(self._allocation, decode.device)
                values = memory[: rows * padded].view(eight_bit.DTYPES[decode.kind]).view(rows, padded)
                scales = memory[rows * padded : rows * (padded + 4)].view(torch.float32).view(rows, 1)
            self._view = eight_bit.EightBit(values, scales)
        if self._holds != holds:
            with self._let_go_if_it_fails():
                decode(self._view)
            self._holds = holds
        return self._view

    def _fault(self, kind: Any, low_rank: Any) -> tuple | None:
        """What the place must hold to be of use; None if no memory is lent."""
        signature = compat.model_vbar.vbar_fault(self._allocation)
        if signature is None:
            self._holds = ()
            return None
        if self._kind != kind:
            self._kind, self._view, self._holds = kind, None, ()
        return bytes(signature), low_rank

    @contextlib.contextmanager
    def _let_go_if_it_fails(self) -> Iterator[None]:
        self._holds = ()
        try:
            yield
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let ComfyUI take the memory again, if it needs it."""
        compat.model_vbar.vbar_unpin(self._allocation)


def _bytes(weight: Any) -> int:
    """Enough for the decoded weight, in 16 bits or in 8 and padded, with scales."""
    rows, num_blocks = weight._params.scale.shape
    return max(weight.numel() * BYTES_A_VALUE, rows * (num_blocks * BLOCK + 4))


def lend_places(model: Any, modules: list[Any], device: torch.device) -> None:
    """Give each packed layer a place in a reservation of the model on `device`; what was kept before may be gone."""
    reservations = model.__dict__.setdefault("hlwq_reservations", {})
    if device not in reservations:
        # Small layers first: they cost a launch each for little memory, and the first are kept the longest.
        modules = sorted(modules, key=lambda module: module.weight.numel())
        sizes = [_bytes(module.weight) for module in modules]
        try:
            reservation = compat.model_vbar.ModelVBAR(sum(sizes) + 512 * len(sizes), device.index)
        except (RuntimeError, MemoryError) as error:
            _log.warning("HLWQ: decoded layers are not kept, ComfyUI lends no memory for them: %s", error)
            return
        reservations[device] = reservation
        for module, size in zip(modules, sizes, strict=True):
            module.place = Place(reservation.alloc(size))
    use_again(model, device)


def use_again(model: torch.nn.Module, device: torch.device) -> None:
    """Before a sampling run: what had to be given up may be used again, after everybody else."""
    reservation = model.__dict__.get("hlwq_reservations", {}).get(device)
    if reservation is not None:
        reservation.prioritize()
        reservation.deprioritize()


def give_back(model: torch.nn.Module, device: torch.device, nbytes: float) -> int:
    """Free up to `nbytes` of what is kept on `device`; the bytes freed."""
    reservation = model.__dict__.get("hlwq_reservations", {}).get(device)
    return 0 if reservation is None else reservation.free_memory(min(nbytes, 1 << 60))
