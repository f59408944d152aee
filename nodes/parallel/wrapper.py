"""What HLWQ Several GPUs hangs into a model: a sampling run of it is computed by several cards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .. import compat
from . import refusals, session
from .cards import Card

KEY = refusals.KEY


class SamplesOnSeveral:
    """Around a sampling run of ComfyUI.

    Args:
        cards: ComfyUI's own first.
        given: what the other processes are told at their start.
    """

    def __init__(self, cards: Sequence[Card], given: dict[str, Any]):
        self.cards, self.given = list(cards), given

    def __call__(self, executor: Callable[..., Any], noise: Any, *args: Any, **kwargs: Any) -> Any:
        """See `comfy.samplers.CFGGuider.outer_sample`."""
        guider = executor.class_obj  # type: ignore[attr-defined]
        patcher = guider.model_patcher
        refusals.refuse(patcher, guider.model_options, guider.conds)
        running = session.session_of(patcher.model, self.cards, self.given)
        with running.sampling(patcher, noise.shape):
            return executor(noise, *args, **kwargs)

    def start(self, model: Any) -> None:
        """Have the other processes load the model meanwhile."""
        session.session_of(model, self.cards, self.given)


def hang_in(patcher: Any, wrapper: SamplesOnSeveral) -> None:
    """Have a patcher's sampling runs computed by several cards; what was hung in before goes."""
    patcher.remove_wrappers_with_key(compat.WrappersMP.OUTER_SAMPLE, KEY)
    patcher.add_wrapper_with_key(compat.WrappersMP.OUTER_SAMPLE, KEY, wrapper)
