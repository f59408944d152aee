"""A prompt without the padding before it. ComfyUI fills prompts of LTX up to 1,024 tokens from the left, has the language model compute all of
them, in float32, carries every layer's states to memory, and cuts the padding's off. No token of the prompt attends to it, and positions
count by their distances only: without it the same comes out, up to rounding, of a tenth of the work and of the bytes.
"""

from __future__ import annotations

import itertools
import numbers
from typing import Any


class Unpadded:
    """Mixed into ComfyUI's wrapper of a language model, before it."""

    special_tokens: dict[str, Any]

    def encode_token_weights(self, token_weight_pairs: list[list[tuple]]) -> Any:
        """As in core: states, pooled, and the attention mask, all of as many tokens as are left."""
        tokens = without_padding(token_weight_pairs, self.special_tokens.get("pad"))
        return super().encode_token_weights(tokens)  # type: ignore[misc]


def without_padding(sections: list[list[tuple]], pad: int | None) -> list[list[tuple]]:
    """A prompt's tokens without the padding that they begin with. As they are where core does something else with padding: with several
    sections, with weights (which it counts by layers), and where no token of a number follows, which ends the padding.

    Args:
        sections: of tokens, each a tuple of a number (or a picture or an embedding), its weight, and what else there is.
        pad: the padding's number.
    """
    if len(sections) != 1 or any(token[1] != 1.0 for token in sections[0]):
        return sections
    (tokens,) = sections
    left = list(itertools.dropwhile(lambda token: isinstance(token[0], numbers.Integral) and token[0] == pad, tokens))
    return [left] if left and isinstance(left[0][0], numbers.Integral) else sections
