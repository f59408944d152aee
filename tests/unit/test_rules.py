"""Recipes: the published set, the sizes that the compact ones promise, and a user's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hlwq_core import manifest
from hlwq_core.errors import InputError
from hlwq_core.rules import load_recipe, planned_size, recipe_names

UPSCALERS = 1.3e9


def ltx() -> list[tuple[str, str, tuple[int, ...]]]:
    return [(name, dtype, shape) for name, (dtype, shape) in manifest.expected().items()]


def test_the_published_set_has_1347_layers() -> None:
    plan = load_recipe("ltx23").plan(ltx())
    assert len(plan) == 1347 and set(plan.values()) == {5}
    assert sum("transformer_blocks" in name for name in plan) == 28 * 48
    size = planned_size(load_recipe("ltx23"), ltx())
    assert size.codes + size.norms == pytest.approx(11.87e9, rel=1e-3)


@pytest.mark.parametrize(("recipe", "limit"), [("ltx23-compact", 17.5e9), ("ltx23-mixed", 15.0e9)])
def test_compact_sets_keep_their_promise(recipe: str, limit: float) -> None:
    size = planned_size(load_recipe(recipe), ltx())
    assert 0.95 * limit < size.total + UPSCALERS <= limit
    assert size.layers > 1347


def test_planned_size_by_hand() -> None:
    tensors = [("a.weight", "BF16", (256, 200)), ("a.bias", "F32", (256,)), ("n", "I64", (3,))]
    recipe = load_recipe("plain")
    size = planned_size(recipe, tensors, 5)
    # 200 columns are two blocks of 80 bytes and a norm of 2 bytes each.
    assert (size.codes, size.norms, size.kept) == (256 * 160, 256 * 4, 256 * 4 + 24)
    assert (size.layers, size.weights) == (1, 256 * 200)


def test_the_vae_and_norms_are_never_packed() -> None:
    for name in recipe_names():
        for tensor in load_recipe(name).plan(ltx()):
            assert "norm" not in tensor and not tensor.startswith(("vae.", "audio_vae.")), (name, tensor)


def test_gemma_packs_the_language_model_alone() -> None:
    tensors = [
        ("model.embed_tokens.weight", "BF16", (262208, 3840)),
        ("model.layers.0.self_attn.q_proj.weight", "BF16", (4096, 3840)),
        ("model.layers.0.mlp.down_proj.weight", "BF16", (3840, 15360)),
        ("model.layers.0.input_layernorm.weight", "BF16", (3840,)),
        ("vision_model.encoder.layers.0.mlp.fc1.weight", "BF16", (4304, 1152)),
        ("vision_model.encoder.layers.0.self_attn.q_proj.weight", "BF16", (1152, 1152)),
    ]
    assert list(load_recipe("gemma").plan(tensors)) == [tensors[1][0], tensors[2][0]]


def test_own_recipe_in_order_with_conditions(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    rules = [
        {"match": "*.head.*", "keep": True},
        {"match": r"re:blocks\.0\.", "bits": 8},
        {"match": "*.weight", "bits": "default", "min_elements": 1000, "min_in": 100},
    ]
    file.write_text(json.dumps({"rules": rules}))
    recipe = load_recipe(file)
    assert recipe.name == "mine"
    assert recipe.bits_for("m.head.weight", "BF16", (512, 512)) is None
    assert recipe.bits_for("blocks.0.weight", "F32", (4, 4)) == 8
    assert recipe.bits_for("blocks.1.weight", "F16", (512, 512), 4) == 4
    assert recipe.bits_for("blocks.1.weight", "F16", (1000, 99)) is None
    assert recipe.bits_for("blocks.1.weight", "F16", (9, 100)) is None
    assert recipe.bits_for("blocks.1.weight", "I8", (512, 512)) is None
    assert recipe.bits_for("blocks.1.weight", "F16", (8, 8, 128)) is None


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        "{}",
        '{"rules": [{"match": "*"}]}',
        '{"rules": [{"match": "*", "bits": 5, "keep": true}]}',
        '{"rules": [{"match": "*", "bits": 7}]}',
        '{"rules": [{"match": "re:(", "bits": 5}]}',
        '{"rules": [{"match": 3, "bits": 5}]}',
        '{"rules": [{"match": "*", "bits": 5, "min_size": 3}]}',
    ],
)
def test_bad_recipes_are_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(text)
    with pytest.raises(InputError, match=r"bad\.json"):
        load_recipe(file)


def test_unknown_recipe_lists_the_known() -> None:
    with pytest.raises(InputError, match="ltx23-compact"):
        load_recipe("lxt23")
