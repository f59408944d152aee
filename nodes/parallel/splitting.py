"""LTX's blocks on a part of the video's tokens: all text, all sound and all weights are on every rank.

Two layers of a block look at other tokens of the video: its self-attention, and the sound's attention to the video. Before them each
rank gives heads for tokens, after them it takes its tokens back. Everything else of a block is a token's own affair.

Hooks are set for the time of a run, on the model's own objects, and taken off again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...hlwq_core.parallel.exchange import Council, Exchange, span
from ...hlwq_core.running import cuda_graph
from ...hlwq_core.running.pending import made
from .. import compat
from ..running import recorded_blocks

KEY = compat.ATTENTION_OVERRIDE
# The ranks ask one another so often whether the user wants to stop: waiting for each other costs the host's head start.
BLOCKS_A_QUESTION = 8
Attention = Callable[..., torch.Tensor]


class Stopped(Exception):
    """Another rank was told to stop, and all of them did at the same block."""


class Split:
    """A model whose blocks are computed by several ranks.

    Args:
        inner: LTX's diffusion model, on this rank.
        exchange, council: this rank's.
        stop: whether this rank was told to stop.
    """

    def __init__(
        self, inner: torch.nn.Module, exchange: Exchange, council: Council, stop: Callable[[], bool] = lambda: False
    ):
        self._inner: Any = inner
        self._exchange, self._council, self._stop = exchange, council, stop
        self._tokens: int | None = None
        # The same functions in each run: recordings know by them what the blocks do.
        self._hooks: list[tuple[Any, str, Callable[..., Any]]] = [(inner, compat.BLOCKS, self._blocks)]
        for index, block in enumerate(inner.transformer_blocks):  # type: ignore[arg-type]
            self._hooks.append((block.attn1, "forward", self._of_video(block.attn1, index)))
            self._hooks.append((block.video_to_audio_attn, "forward", self._of_sound(block.video_to_audio_attn)))

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """While the model's blocks are computed by all ranks."""
        for module, name, hook in self._hooks:
            module.__dict__[name] = hook
        try:
            with recorded_blocks.agreeing(self._inner, self._council):
                yield
        finally:
            for module, name, hook in self._hooks:
                if module.__dict__.get(name) is hook:
                    del module.__dict__[name]

    def _blocks(
        self, x: list[torch.Tensor], context: Any, attention_mask: Any, timestep: Any, pe: Any, **others: Any
    ) -> Any:
        """As the model's own method, on this rank's tokens of the video."""
        run = getattr(type(self._inner), compat.BLOCKS)
        video, *sound = x
        tokens, ranks = video.shape[1], self._exchange.ranks
        if tokens < ranks:  # each computes all of it
            return run(self._inner, x, context, attention_mask, timestep, pe, **others)
        own = span(tokens, self._exchange.rank, ranks)
        self._tokens = tokens
        try:
            video, *sound = run(
                self._inner,
                [video[:, own].clone(), *sound],  # blocks write to it
                context,
                attention_mask,
                compat.timesteps_of(timestep, tokens, own),
                compat.positions_of(pe, tokens, own),
                **others,
            )
        finally:
            self._tokens = None
        return [self._exchange.all_tokens(video, tokens), *sound]

    def _of_video(self, module: Any, index: int) -> Callable[..., torch.Tensor]:
        """The self-attention of a block's video."""

        def attend(
            function: Attention,
            mask: Any,
            options: dict[str, Any],
            q: torch.Tensor,
            k: torch.Tensor,
            v: torch.Tensor,
            heads: int,
            *args: Any,
            **others: Any,
        ) -> torch.Tensor:
            assert self._tokens is not None
            q, k, v = made((q, k, v))
            size = q.shape[2] // heads
            q, k, v = (self._exchange.to_heads(part, heads, self._tokens) for part in (q, k, v))
            own = q.shape[2] // size
            if not own:
                result = q
            elif compat.is_guide_mask(mask):
                # It counts queries by their place in the whole video: hence after the exchange.
                precision = others.get("attn_precision")
                result = compat.attention_with_guide_mask(q, k, v, own, mask, precision, options)
            else:
                masked = others if mask is None else {**others, "mask": mask}
                result = _attention(function, options, q, k, v, own, *args, **masked)
            return self._exchange.to_tokens(result, heads, size)

        def hook(x: torch.Tensor, mask: Any = None, transformer_options: Any = None, **others: Any) -> torch.Tensor:
            options = transformer_options or {}
            if self._tokens is None:
                return type(module).forward(module, x, mask=mask, transformer_options=options, **others)
            if index % BLOCKS_A_QUESTION == 0:
                self._ask()

            def override(function: Attention, *args: Any, **given: Any) -> torch.Tensor:
                return attend(function, mask, options, *args, **given)

            return type(module).forward(module, x, transformer_options={**options, KEY: override}, **others)

        return hook

    def _of_sound(self, module: Any) -> Callable[..., torch.Tensor]:
        """The sound's attention to the video, in a block."""

        def attend(
            function: Attention,
            options: dict[str, Any],
            q: torch.Tensor,
            k: torch.Tensor,
            v: torch.Tensor,
            heads: int,
            *args: Any,
            **others: Any,
        ) -> torch.Tensor:
            assert self._tokens is not None
            q, k, v = made((q, k, v))
            size = q.shape[2] // heads
            q = self._exchange.own_heads(q, heads)
            k, v = (self._exchange.to_heads(part, heads, self._tokens) for part in (k, v))
            own = q.shape[2] // size
            result = _attention(function, options, q, k, v, own, *args, **others) if own else q
            return self._exchange.all_heads(result, heads, size)

        def hook(x: torch.Tensor, transformer_options: Any = None, **others: Any) -> torch.Tensor:
            options = transformer_options or {}
            if self._tokens is None:
                return type(module).forward(module, x, transformer_options=options, **others)

            def override(function: Attention, *args: Any, **given: Any) -> torch.Tensor:
                return attend(function, options, *args, **given)

            return type(module).forward(module, x, transformer_options={**options, KEY: override}, **others)

        return hook

    def _ask(self) -> None:
        """Stop on all ranks at this block, if one was told to.

        Raises:
            Stopped: one was; in ComfyUI's own process its exception for that.
        """
        if cuda_graph.is_recording() or not self._council.any(self._stop()):
            return
        compat.model_management.throw_exception_if_processing_interrupted()
        raise Stopped


def _attention(function: Attention, options: dict[str, Any], *args: Any, **others: Any) -> torch.Tensor:
    """The attention that would have been called without us."""
    others["transformer_options"] = options
    chosen = options.get(KEY)
    return function(*args, **others) if chosen is None else chosen(function, *args, **others)
