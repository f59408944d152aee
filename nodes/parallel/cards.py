"""Which cards compute together, what is to be said of them, and how a process gets one of them alone."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from ...hlwq_core.errors import InputError, UnsupportedError
from ...hlwq_core.parallel import groups

ALL = "all"


@dataclass(frozen=True)
class Card:
    """A card of this machine.

    Attributes:
        device: as ComfyUI's process calls it.
        name: of the model.
        memory: bytes of it; 0 for a processor.
    """

    device: torch.device
    name: str
    memory: int

    def __str__(self) -> str:
        return f"{self.device} ({self.name})" if self.memory else str(self.device)

    def environment(self) -> dict[str, str]:
        """The environment of a process that has this card and no other."""
        if self.device.type != "cuda":
            return dict(os.environ)
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        index = self.device.index or 0
        return {**os.environ, "CUDA_VISIBLE_DEVICES": visible[index] if visible else str(index)}


def card(device: torch.device) -> Card:
    """A device's card."""
    if device.type != "cuda":
        return Card(device, device.type, 0)
    facts = torch.cuda.get_device_properties(device)
    return Card(torch.device("cuda", device.index or 0), facts.name, facts.total_memory)


def choose(text: str, own: torch.device) -> list[Card]:
    """The cards that a user named, ComfyUI's own first.

    Args:
        text: `all`, or numbers of cards with commas between them. On a processor `cpu` as often as there shall be processes.
        own: the device that ComfyUI samples on.

    Raises:
        InputError: a card is not there, or ComfyUI's own is not among them.
        UnsupportedError: cards cannot compute together here.
    """
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    if own.type != "cuda":
        count = 1 if words == [ALL] or words == [] else len(words)
        if any(word not in (ALL, own.type) for word in words):
            raise _wrong(text, f"ComfyUI samples on {own.type}, which is no NVIDIA card")
        cards = [card(own)] * count
    else:
        there, first = torch.cuda.device_count(), own.index or 0
        numbers = list(range(there)) if words in ([ALL], []) else [_number(word, text, there) for word in words]
        if len(set(numbers)) != len(numbers):
            raise _wrong(text, "a card is named twice")
        if first not in numbers:
            raise _wrong(text, f"card {first}, which ComfyUI samples on, is not among them")
        cards = [card(torch.device("cuda", n)) for n in [first, *(n for n in numbers if n != first)]]
    if len(cards) > 1 and (reason := groups.unavailable_reason(own)) is not None:
        raise UnsupportedError(
            "several cards cannot compute one video here",
            expected="a torch whose processes can exchange tensors between cards",
            found=reason,
            fix="take HLWQ Several GPUs out of the workflow, or name one card",
        )
    return cards


def _number(word: str, text: str, there: int) -> int:
    number = word.removeprefix("cuda:")
    if not number.isdecimal() or int(number) >= there:
        raise _wrong(text, f"{word!r} is none of the {there} cards that ComfyUI sees")
    return int(number)


def _wrong(text: str, found: str) -> InputError:
    return InputError(
        "these are not the cards to compute with",
        expected='"all", or numbers of cards as "0,1", with the one that ComfyUI samples on',
        found=f"{text!r}: {found}",
        fix="correct the input; start ComfyUI without --cuda-device to let it see all cards",
    )


def remarks(cards: list[Card]) -> list[str]:
    """What a user should know of these cards, a line each."""
    lines = []
    if len(cards) == 1:
        lines.append(f"one card, {cards[0]}: the model runs as without this node")
    elif len({(other.name, other.memory) for other in cards}) > 1:
        shown = ", ".join(f"{other} {other.memory / 2**30:.0f} GB" for other in cards)
        lines.append(f"unequal cards ({shown}): each has as many tokens, so the slowest sets the pace")
    apart = [
        other
        for other in cards[1:]
        if other.device.type == "cuda" and not torch.cuda.can_device_access_peer(cards[0].device, other.device)
    ]
    if apart:
        lines.append(
            f"{cards[0].device} has no direct way to {', '.join(str(other.device) for other in apart)}: tensors go by "
            "way of memory, which may cost more than a card gains"
        )
    return lines
