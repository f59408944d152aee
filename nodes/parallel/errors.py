"""What fails where several cards compute one video: the error names the card."""

from __future__ import annotations

import torch

from ...hlwq_core.errors import HLWQError

FIX = "run the prompt again, the cards start anew; if it fails again, leave this card out of the list, or mend what it names"
NO_MEMORY = (
    "make the video smaller, free this card's memory (other programs, other models), or leave it out of the list"
)


class RankError(HLWQError):
    """A card of several failed, or cannot be reached any more."""


class RankOutOfMemory(RankError, torch.OutOfMemoryError):
    """A card of several has not enough memory. ComfyUI knows it for what it is, and frees its own."""


def rank_error(who: str, what: str, out_of_memory: bool = False) -> RankError:
    """The error of one rank.

    Args:
        who: the rank and its card.
        what: happened.
    """
    kind, fix = (RankOutOfMemory, NO_MEMORY) if out_of_memory else (RankError, FIX)
    return kind(f"{who} failed while several cards computed one video", found=what, fix=fix)
