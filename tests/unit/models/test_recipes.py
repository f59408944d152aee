"""Recipes: the published set, the sizes that the compact ones promise, and a user's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hlwq_core.errors import InputError
from hlwq_core.models import ltx23, recipes
from hlwq_core.models.recipes import load_recipe, planned_size, recipe_names

UPSCALERS = 1.3e9


def ltx() -> list[tuple[str, str, tuple[int, ...]]]:
    return [(name, dtype, shape) for name, (dtype, shape) in ltx23.tensors().items()]


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


def gemma_12b() -> list[tuple[str, str, tuple[int, ...]]]:
    """Gemma 3 12B as ComfyUI's file has it, with the vision tower."""
    width, inner = 3840, 15360
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (262208, width),
        "model.norm.weight": (width,),
        "multi_modal_projector.mm_input_projection_weight": (1152, width),
        "vision_model.embeddings.patch_embedding.weight": (1152, 3, 14, 14),
        "vision_model.embeddings.position_embedding.weight": (4096, 1152),
    }
    for i in range(48):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}self_attn.{x}_proj.weight": (rows, width) for x, rows in zip("qkv", (4096, 2048, 2048))}
        shapes |= {f"{layer}self_attn.o_proj.weight": (width, 4096), f"{layer}self_attn.q_norm.weight": (256,)}
        shapes |= {f"{layer}mlp.{x}_proj.weight": (inner, width) for x in ("gate", "up")}
        shapes |= {f"{layer}mlp.down_proj.weight": (width, inner), f"{layer}input_layernorm.weight": (width,)}
    for i in range(27):
        layer = f"vision_model.encoder.layers.{i}."
        shapes |= {f"{layer}self_attn.{x}_proj.weight": (1152, 1152) for x in ("q", "k", "v", "out")}
        shapes |= {f"{layer}mlp.fc1.weight": (4304, 1152), f"{layer}mlp.fc2.weight": (1152, 4304)}
    return [(name, "BF16", shape) for name, shape in shapes.items()]


def test_gemma_keeps_its_promise_of_less_than_8_gb() -> None:
    recipe = load_recipe("gemma")
    size = planned_size(recipe, gemma_12b(), 5)
    print(f"Gemma 3 12B at 5 bits: {size.total / 1e9:.3f} GB, {size.kept / 1e6:.1f} MB of it kept")
    assert size.total <= 7.9e9
    assert size.layers == 1 + 48 * 7 + 27 * 6
    kept = [name for name, dtype, shape in gemma_12b() if recipe.bits_for(name, dtype, shape) is None]
    assert all("norm" in n or "embeddings" in n or "projector" in n for n in kept), kept


@pytest.mark.parametrize("prefix", ["model.", "language_model.model.", "model.language_model."])
def test_gemma_under_hugging_faces_names(prefix: str) -> None:
    tensors = [
        (f"{prefix}embed_tokens.weight", "BF16", (262208, 3840)),
        (f"{prefix}layers.0.self_attn.q_proj.weight", "BF16", (4096, 3840)),
        ("vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", "BF16", (4304, 1152)),
        (f"{prefix}layers.0.input_layernorm.weight", "BF16", (3840,)),
    ]
    assert list(load_recipe("gemma").plan(tensors)) == [name for name, *_ in tensors[:3]]


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


def test_a_regular_expression_that_never_ends_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's cannot be interrupted: a user's own are tried in a process that can."""
    monkeypatch.setattr(recipes, "_SECONDS", 1.0)
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps({"rules": [{"match": "re:^(a+)+$", "bits": 5}]}))
    tensors = [("a" * 60 + "!", "F16", (256, 256))]
    for work in (lambda: load_recipe(mine).plan(tensors), lambda: planned_size(load_recipe(mine), tensors)):
        with pytest.raises(InputError, match="takes too long") as caught:
            work()
        assert "(a+)+" in str(caught.value.found) and caught.value.fix


def test_a_users_regular_expression_finds_what_ours_would(tmp_path: Path) -> None:
    pattern = r"(?i)BLOCKS\.(0|47)\..*weight"
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps({"rules": [{"match": f"re:{pattern}", "bits": 6}]}))
    names = ["m.blocks.0.é.weight", "m.blocks.47.b.weight", "m.blocks.4.c.weight", "x"]
    recipe = load_recipe(mine)
    assert list(recipe.plan((name, "F16", (256, 256)) for name in names)) == names[:2]
    assert [recipe.bits_for(name, "F16", (256, 256)) for name in names] == [6, 6, None, None]


@pytest.mark.parametrize(
    "rules",
    [5, [5], [{}], [{"match": "*", "bits": True}], [{"match": "*", "bits": 7}], [{"match": 5, "bits": 5}],
     [{"match": "x" * 2000, "bits": 5}], [{"match": "re:" + "(" * 900, "bits": 5}], [{"match": "re:a{9" + "9" * 30 + "}", "bits": 5}],
     [{"match": "*", "bits": 5, "min_elements": "9"}], [{"match": "*", "bits": 5, "min_in": -1}], [{"match": "*", "keep": True}] * 2000],
)  # fmt: skip
def test_rules_that_are_none(tmp_path: Path, rules: object) -> None:
    (tmp_path / "mine.json").write_text(json.dumps({"rules": rules}))
    with pytest.raises(InputError, match="cannot be understood") as caught:
        load_recipe(tmp_path / "mine.json")
    assert caught.value.file and caught.value.fix
