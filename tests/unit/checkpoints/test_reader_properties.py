"""Anything as a header, a meta, a config, a side file: a reader gives a result or an error of the pack, nothing else."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hlwq_core
from hlwq_core.checkpoints.find import glance
from hlwq_core.errors import HLWQError
from hlwq_core.format.bounded import parse_json
from hlwq_core.format.safefile import SafeFile, read_header
from hlwq_core.models.recipes import load_recipe
from hlwq_core.tools.inspect import inspect, table
from hlwq_core.tools.verify import verify
from tests.attacks import checkpoints as attacks
from tests.attacks import folders

few = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
many = settings(few, max_examples=300)

numbers = st.one_of(
    st.integers(-(2**70), 2**70),
    st.integers(-2, 300),
    st.floats(allow_nan=True, allow_infinity=True),
    st.just(10**400),
)
texts = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["F16", "U8", "I64", "BF16", "__packed", "a.b__packed", "x__norms", "x__meta", "a.codes", "5", "²"]
    ),
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=12,
)
names = st.one_of(
    texts,
    st.builds(
        "m.blocks.{}.{}{}".format,
        st.one_of(st.integers(0, 10**9), st.just("9" * 900)),
        texts,
        st.sampled_from(
            ["__packed", "__norms", "__meta", "__codes", ".codes", ".norms", ".ct", ".ct_scaled", ".weight"]
        ),
    ),
)
shapes = st.lists(st.integers(0, 5), max_size=3)
dtypes = st.sampled_from(sorted(attacks.SIZES))


@st.composite
def tensors(draw: st.DrawFn) -> attacks.Tensors:
    """Sound files of tensors that may be anything."""
    made: attacks.Tensors = {}
    for name in draw(st.lists(names, max_size=8, unique=True)):
        dtype, shape = draw(dtypes), draw(shapes)
        count = attacks.SIZES[dtype]
        for n in shape:
            count *= n
        made[name] = (dtype, shape, draw(st.binary(min_size=count, max_size=count)))
    return made


def outcome(call, *args: Any, **options: Any) -> Any:
    try:
        return call(*args, **options)
    except HLWQError as error:
        assert str(error).encode() and len(str(error)) < 20_000
        return error


@many
@given(header=json_values, data=st.binary(max_size=16))
def test_any_json_as_a_header(header: Any, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        path.write_bytes(folders.safetensors(header, data))
        glance(path)
        outcome(read_header, path)
        outcome(hlwq_core.open_checkpoint, path)


@many
@given(raw=st.binary(max_size=600))
def test_any_bytes_as_a_file(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        path.write_bytes(raw)
        assert not glance(path).codes or b"__packed" in raw or b"codes" in raw
        outcome(read_header, path)
        outcome(inspect, folder)


@many
@given(
    fields=st.fixed_dictionaries(
        {
            "dtype": st.one_of(dtypes, json_values),
            "shape": st.one_of(shapes, st.lists(numbers, max_size=40), json_values),
            "data_offsets": st.one_of(st.tuples(numbers, numbers), json_values),
        }
    )
)
def test_any_fields_of_a_tensor(fields: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        path.write_bytes(folders.safetensors({"a.weight": fields}, bytes(8)))
        found = outcome(SafeFile, path)
        if isinstance(found, SafeFile):
            assert found.tensor("a.weight").shape == found.entries["a.weight"].shape


@few
@given(made=tensors(), metadata=st.dictionaries(st.sampled_from(["config", "hlwq.norms", "hlwq.bit_order"]), texts))
def test_any_tensors_as_a_checkpoint(made: attacks.Tensors, metadata: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        attacks.write(Path(folder) / "x.safetensors", made, metadata)
        opened = outcome(hlwq_core.open_checkpoint, folder, partial=True)
        if isinstance(opened, hlwq_core.Checkpoint):
            for name in opened.names():
                outcome(opened.decode, name)
        found = outcome(inspect, folder)
        if not isinstance(found, HLWQError):
            table(found).encode()
        outcome(verify, folder)


@few
@given(changes=st.dictionaries(st.sampled_from(["packed", "norms", "meta"]), st.tuples(dtypes, shapes), min_size=1))
def test_any_parts_of_a_layer(changes: dict[str, tuple[str, list[int]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        replaced: attacks.Tensors = {}
        for part, (dtype, shape) in changes.items():
            count = attacks.SIZES[dtype]
            for n in shape:
                count *= n
            replaced["{base}__" + part] = (dtype, shape, bytes(range(256)) * (count // 256) + bytes(count % 256))
        attacks.sound(Path(folder))
        attacks.codes(replaced)(Path(folder))
        outcome(inspect, folder)
        outcome(verify, folder)


@few
@given(
    meta=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=4, max_size=5),
    file=st.sampled_from(["polar_config.json", "hlwq.sha256.json", "config.json"]),
    value=json_values,
    key=st.sampled_from(["bits", "format", "block_size", "files", "transformer", "vae", "repository"]),
)
def test_any_meta_and_any_side_file(meta: list[int], file: str, value: Any, key: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        attacks.sound(Path(folder))
        attacks.codes(attacks._LTX_TENSORS | {"{base}__meta": attacks.ints(*meta)})(Path(folder))
        (Path(folder) / file).write_text(json.dumps({key: value}))
        outcome(inspect, folder)
        outcome(verify, folder)
        outcome(hlwq_core.open_checkpoint, folder)


@many
@given(rules=json_values, rule=st.dictionaries(st.sampled_from(["match", "bits", "keep", "min_elements"]), json_values))
def test_any_recipe(rules: Any, rule: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for content in ({"rules": rules}, {"rules": [rule]}, rules):
            (Path(folder) / "r.json").write_text(json.dumps(content))
            outcome(load_recipe, Path(folder) / "r.json")


@many
@given(raw=st.one_of(st.binary(max_size=64), st.text(max_size=64).map(lambda text: text.encode("utf-16"))))
def test_any_bytes_as_json(raw: bytes) -> None:
    outcome(parse_json, raw, "something")


@pytest.mark.parametrize("depth", [64, 65, 1000, 100_000])
def test_json_nests_so_deep_and_no_deeper(depth: int) -> None:
    for text in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
        found = outcome(parse_json, text, "it")
        assert isinstance(found, HLWQError) == (depth > 64)
