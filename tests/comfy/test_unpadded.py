"""A prompt is encoded without the padding before it, and what nodes made of its tokens as core encodes it."""

from __future__ import annotations

import pytest
import torch

from .test_text_encoder import PROMPTS, checkpoint, distance, files, node, plain  # noqa: F401  fixtures


@pytest.mark.parametrize("text", ["", *PROMPTS])
def test_the_padding_before_a_prompt_is_not_computed(node, plain, text):  # noqa: F811
    """Core computes 1,024 tokens of any prompt, and none of its own sees those before it."""
    language = plain.cond_stage_model.gemma3_12b
    tokens = plain.tokenize(text)["gemma3_12b"]
    seen = []
    layer = language.transformer.model.layers[0]
    hook = layer.register_forward_pre_hook(
        lambda module, arguments, named: seen.append(named["x"].shape[1]), with_kwargs=True
    )
    try:
        with torch.inference_mode():
            states, _, extra = language.encode_token_weights(tokens)
            padded, _, core = node.compat.SDClipModel.encode_token_weights(language, tokens)
    finally:
        hook.remove()
    count = int(core["attention_mask"].sum())
    assert seen == [count, 1024] and extra["attention_mask"].tolist() == [[1] * count]
    assert states.shape[2] == count and distance(padded[:, :, -count:], states) < 1e-5


@pytest.mark.parametrize(
    "sections, left",
    [
        ([[0, 0, 2, 7]], [[2, 7]]),
        ([[0, 0, 2, 0, 7]], [[2, 0, 7]]),
        ([[2, 7, 0, 0]], [[2, 7, 0, 0]]),
        ([[0, 0, 2]], [[2]]),
        ([[0, 0, 2, "picture", 7]], [[2, "picture", 7]]),
        # Core does something of its own with these.
        ([[0, 0, 0]], [[0, 0, 0]]),
        ([[0, "picture", 0, 2]], [[0, "picture", 0, 2]]),
        ([[0, 0, 2], [0, 2, 7]], [[0, 0, 2], [0, 2, 7]]),
        ([["picture", 0, 2]], [["picture", 0, 2]]),
        ([], []),
    ],
)
@pytest.mark.parametrize("more", [(), (None,)])
def test_padding_is_what_comes_before_a_prompt(pack, sections, left, more):
    from comfyui_hlwq.nodes.unpadded import without_padding

    embedding = torch.zeros(4)  # compared with a number, it would be many answers

    def tokens(sections: list, weight: float = 1.0) -> list:
        return [
            [(embedding if token == "picture" else token, weight, *more) for token in section] for section in sections
        ]

    assert without_padding(tokens(sections), 0) == tokens(left)
    assert without_padding(tokens(sections), None) == tokens(sections)
    assert without_padding(tokens(sections, 1.3), 0) == tokens(sections, 1.3)


@pytest.mark.parametrize("change", ["weight", "section", "embedding"])
def test_tokens_that_nodes_changed_are_encoded_as_core_encodes_them(node, plain, change):  # noqa: F811
    """Weights within the tokens, sections of their own (BREAK), an embedding in the padding: core's own answer, whatever it is."""
    tokens = plain.tokenize(PROMPTS[0])["gemma3_12b"]
    (section,) = tokens
    if change == "weight":
        section[-1] = (section[-1][0], 1.3)
    elif change == "section":
        tokens.append(plain.tokenize(PROMPTS[1])["gemma3_12b"][0])
    else:
        section[5] = (torch.zeros(64), 1.0)
    language = plain.cond_stage_model.gemma3_12b
    with torch.inference_mode():
        found, _, extra = language.encode_token_weights(tokens)
        expected, _, core = node.compat.SDClipModel.encode_token_weights(language, tokens)
    assert torch.equal(found, expected) and torch.equal(extra["attention_mask"], core["attention_mask"])
