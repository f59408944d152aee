"""Families: recognised by their tensors, with or without the diffusion model's prefix, and told apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from hlwq_core.errors import ConfigError
from hlwq_core.models import families, ltx, ltx2, ltx23, ltx25
from hlwq_core.models.family import DIFFUSION, Family, find_config

LTX2 = {"connector_num_layers": 2}
LTX25 = ltx23.config()["transformer"] | {"ff_bias": False}


def names_of(family: Family) -> list[str]:
    config = {"ltx2": {"transformer": LTX2}, "ltx25": {"transformer": LTX25}}.get(family.key) or ltx23.config()
    return [name for part in family.needed(config).values() for name in part]


KNOWN = [family for family in families.FAMILIES if family.known]


def test_the_tensors_of_ltx23_are_those_of_its_file() -> None:
    assert set(names_of(ltx23.FAMILY)) == set(ltx23.tensors()) and len(ltx23.tensors()) == 5947


def test_ltx25_lacks_96_biases_and_has_a_place_for_keyframes() -> None:
    older = {name for name in names_of(ltx23.FAMILY) if name.startswith(DIFFUSION)}
    newer = {name for name in names_of(ltx25.FAMILY) if name.startswith(DIFFUSION)}
    assert newer - older == {f"{DIFFUSION}keyframes_abs_pos_embedding"}
    lost = older - newer
    assert len(lost) == 96 and all(".ff.net." in name and name.endswith(".bias") for name in lost)


def test_ltx25_at_full_size_is_planned_from_names_alone() -> None:
    """What `quantize --plan` says of the published transformer: as many layers as of LTX-2.3's, and their size."""
    from hlwq_core.models.recipes import load_recipe, planned_size

    described = [(name, dtype, shape) for name, (dtype, shape) in ltx25.tensors().items()]
    size = planned_size(load_recipe("ltx25"), described)
    assert size.layers == 48 * 28 + 3 and 11.8e9 < size.codes + size.norms < 12e9


@pytest.mark.parametrize("bare", [False, True], ids=["prefixed", "bare"])
@pytest.mark.parametrize("family", KNOWN, ids=lambda family: family.key)
def test_a_transformer_alone_is_recognised(family: Family, bare: bool) -> None:
    names = [name for name in names_of(family) if name.startswith(DIFFUSION)]
    given = [name.removeprefix(DIFFUSION) for name in names] if bare else names
    found = families.recognise(given)
    assert found is not None and found.family is family and found.bare == bare
    assert [found.own(found.canonical(name)) for name in given] == given


@pytest.mark.parametrize("family", KNOWN, ids=lambda family: family.key)
def test_a_family_is_recognised_without_its_first_mark(family: Family) -> None:
    """A mark that is missing makes no other model of it."""
    marks = ("keyframes_abs_pos_embedding", "prompt_adaln_single", "bwe_generator", "text_embedding_projection")
    names = [name for name in names_of(family) if not any(mark in name for mark in marks)]
    found = families.recognise(names)
    assert found is not None and found.family is family


def test_codes_alone_are_the_published_model() -> None:
    codes = [n for n, (_, shape) in ltx23.tensors().items() if ".transformer_blocks." in n and len(shape) == 2]
    found = families.recognise([name for name in codes if name.endswith(("to_q.weight", "net.2.weight"))])
    assert found is not None and found.family is ltx23.FAMILY


def test_an_ltx_without_any_mark_is_of_an_unknown_version() -> None:
    base = [name for name in names_of(ltx2.FAMILY) if "caption_projection" not in name and "aggregate" not in name]
    found = families.recognise(base)
    assert found is not None and found.family is ltx.FAMILY and not found.family.known


def test_other_models_are_none() -> None:
    assert families.recognise(["blocks.0.self_attn.q.weight", "text_embedding.0.weight"]) is None
    assert families.recognise([]) is None and families.recipe_of(["blocks.0.q.weight"]) == "plain"


def test_an_older_versions_config_contradicts_ltx25(tmp_path: Path) -> None:
    block = f"{DIFFUSION}transformer_blocks.0.ff.net.2"
    shapes = {f"{block}.weight": (4096, 16384)}
    with pytest.raises(ConfigError, match="no config"):
        find_config(ltx25.FAMILY, tmp_path, {}, shapes)
    import json

    with pytest.raises(ConfigError, match="contradicts") as caught:
        find_config(ltx25.FAMILY, tmp_path, {"config": json.dumps(ltx23.config())}, shapes)
    assert caught.value.tensor == f"{block}.bias"
    config = ltx23.config() | {"transformer": LTX25}
    assert find_config(ltx25.FAMILY, tmp_path, {"config": json.dumps(config)}, shapes).values == config


@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda family: family.key)
def test_each_family_has_what_others_rely_on(family: Family) -> None:
    from hlwq_core.models.recipes import load_recipe

    assert family.parts[0].name == "transformer" and all(part.instead for part in family.parts[1:])
    assert load_recipe(family.recipe).rules and family.name in family.full or not family.known
    assert family.limits.size >= 1 and family.limits.frames >= 1


@pytest.mark.parametrize(
    ("transformer", "part", "whose"),
    [
        ("ltx23", "vae.decoder.conv_in_x_t.weight", "LTX-2.5"),
        ("ltx2", "vae.decoder.conv_in_x_t.weight", "LTX-2.5"),
        ("ltx23", "vocoder.resblocks.0.convs1.0.weight", "LTX-2"),
        ("ltx2", "vocoder.bwe_generator.conv_pre.weight", "LTX-2.3"),
        ("ltx25", "text_embedding_projection.aggregate_embed.weight", "LTX-2"),
        ("ltx2", "text_embedding_projection.video_aggregate_embed.weight", "LTX-2.5 or LTX-2.3"),
    ],
)
def test_a_part_of_another_version_is_named(tmp_path: Path, transformer: str, part: str, whose: str) -> None:
    """A VAE or projection beside a transformer that it was not made for: whose it is, and nothing is loaded."""
    import json

    import torch
    from safetensors.torch import save_file

    from hlwq_core import open_checkpoint
    from hlwq_core.checkpoints.completeness import refuse_incomplete, whole
    from hlwq_core.errors import UnsupportedError

    family = families.by_key(transformer)
    values = {"ltx23": ltx23.config()["transformer"], "ltx2": LTX2, "ltx25": LTX25}[transformer]
    names = family.needed({"transformer": {**values, "num_layers": 1}})["transformer"]
    tensors = {name: torch.zeros(1) for name in [*names, part]}
    tensors["extra.weight__packed"] = torch.zeros(80, dtype=torch.uint8)
    tensors["extra.weight__norms"] = torch.ones(1, 1)
    tensors["extra.weight__meta"] = torch.tensor([1, 1, 128, 128, 128])
    config = {"config": json.dumps({"transformer": {**values, "num_layers": 1}})}
    save_file(tensors, tmp_path / "mixed.safetensors", config)
    result = whole(open_checkpoint(tmp_path / "mixed.safetensors"))
    assert result.family is family and not result.complete
    with pytest.raises(UnsupportedError, match=f"is that of {whose}, and the transformer is {family.name}") as caught:
        refuse_incomplete(tmp_path, result)
    assert caught.value.tensor == part


@pytest.mark.parametrize(("one", "other"), [("ltx25", "ltx23"), ("ltx23", "ltx2")])
def test_halves_of_two_versions_are_named(tmp_path: Path, one: str, other: str) -> None:
    """What is missing besides does not matter: no repair makes one model of two."""
    import json

    import torch
    from safetensors.torch import save_file

    from hlwq_core import open_checkpoint
    from hlwq_core.checkpoints.completeness import refuse_incomplete, whole
    from hlwq_core.errors import UnsupportedError

    values = {"ltx23": ltx23.config()["transformer"], "ltx2": LTX2, "ltx25": LTX25}
    flags = {key: value for key, value in values[one].items() if isinstance(value, bool) or "layers" in key}
    config = {"config": json.dumps({"transformer": {**flags, "num_layers": 4}})}  # no widths: these tensors have none
    for key, blocks in ((one, (0, 1)), (other, (2, 3))):
        names = families.by_key(key).needed({"transformer": {**values[key], "num_layers": 4}})["transformer"]
        mine = [n for n in names if any(f".transformer_blocks.{b}." in n for b in blocks)]
        if key == one:
            mine += [name for name in names if ".transformer_blocks." not in name]
        else:
            mine += [name for name in names if name.startswith(ltx.CAPTIONS)]
        tensors = {name: torch.zeros(1) for name in mine}
        if key == one:
            tensors["extra.weight__packed"] = torch.zeros(80, dtype=torch.uint8)
            tensors["extra.weight__norms"] = torch.ones(1, 1)
            tensors["extra.weight__meta"] = torch.tensor([1, 1, 128, 128, 128])
        save_file(tensors, tmp_path / f"{key}.safetensors", config if key == one else None)
    result = whole(open_checkpoint(tmp_path))
    assert result.found is not None and result.family is families.by_key(one)
    result.unexpected = [name for name in result.unexpected if not name.startswith("extra")]
    with pytest.raises(UnsupportedError, match=f"those of {families.by_key(other).name}: two versions"):
        refuse_incomplete(tmp_path, result)
