"""Whatever a checkpoint holds, every reader ends in a result or in an error of the pack, soon."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hlwq_core
from hlwq_core.errors import HLWQError
from hlwq_core.tools.inspect import coverage_picture, inspect, table
from hlwq_core.tools.quantize import quantize
from hlwq_core.tools.repair import repair
from hlwq_core.tools.verify import verify
from tests.attacks import checkpoints as attacks

pytestmark = pytest.mark.timeout(60)


def read(folder: Path, original: Path) -> None:
    checkpoint = hlwq_core.open_checkpoint(folder)
    json.dumps(checkpoint.report())
    checkpoint.shapes()
    for name in checkpoint.names():
        checkpoint.check_data(name)
        decoded = checkpoint.decode(name, torch.float32)
        assert torch.isfinite(decoded).all()
    for name in checkpoint.plain_names():
        checkpoint.plain(name)


def look(folder: Path, original: Path) -> None:
    found = inspect(folder)
    assert len(table(found)) < 1_000_000
    table(found).encode()
    json.dumps(found.to_dict())
    picture = coverage_picture(found)
    assert picture.width < 20_000 and picture.height < 20_000


def check(folder: Path, original: Path) -> None:
    json.dumps(verify(folder).to_dict())


def compare(folder: Path, original: Path) -> None:
    json.dumps(verify(folder, original).to_dict())


def complete(folder: Path, original: Path) -> None:
    repair(folder, original)


READERS: dict[str, Callable[[Path, Path], Any]] = {
    "open": read, "inspect": look, "verify": check, "verify against": compare, "repair": complete,
}  # fmt: skip


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return attacks.original(tmp_path_factory.mktemp("original") / "dense.safetensors")


def ends_well(reader: str, folder: Path, original: Path) -> HLWQError | None:
    try:
        READERS[reader](folder, original)
    except HLWQError as error:
        str(error).encode()
        assert error.what and len(str(error)) < 10_000
        return error
    return None


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_every_reader_ends_in_an_error_of_the_pack(tmp_path: Path, original: Path, name: str) -> None:
    attacks.ATTACKS[name](attacks.sound(tmp_path / "c"))
    for reader in READERS:
        ends_well(reader, tmp_path / "c", original)


def test_the_sound_one_is(tmp_path: Path, original: Path) -> None:
    attacks.sound(tmp_path / "c")
    assert [ends_well(reader, tmp_path / "c", original) for reader in READERS] == [None] * len(READERS)


@pytest.mark.parametrize(
    ("name", "reader", "words"),
    [
        ("V3, a code above the claimed bits", "open", "a code that the codebook does not have"),
        ("V4, a table of no levels", "open", "a codebook of a wrong size"),
        ("V4, a table of NaN", "open", "not finite"),
        ("a layer cut, its norms of another shape", "repair", "norms of another shape"),
        ("config.json UTF-16", "inspect", "UTF-16"),
        ("config.json num_layers: \"48\"", "inspect", "num_layers"),
        ("config.json transformer: 5", "inspect", "transformer"),
        ("polar_config.json of 1 GB", "open", "too large"),
        ("polar_config.json nested deeply", "open", "nested"),
        ("polar_config.json is a FIFO", "open", "no regular file"),
        ("hlwq.sha256.json of 1 GB", "verify", "too large"),
        ("record with NUL", "verify", "name"),
        ("a chunk is a FIFO", "open", "a FIFO"),
        ("a chunk is a link to nothing", "inspect", "a link to nothing"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, original: Path, name: str, reader: str, words: str) -> None:
    folder = attacks.sound(tmp_path / "c")
    attacks.ATTACKS[name](folder)
    error = ends_well(reader, folder, original)
    if error is not None:
        said = str(error)
        assert error.fix, said
    else:
        said = json.dumps((inspect(folder) if reader == "inspect" else verify(folder)).to_dict())
    assert words in said, said


def test_claims_that_json_writes_in_another_way(tmp_path: Path, original: Path) -> None:
    folder = attacks.sound(tmp_path / "c")
    attacks.ATTACKS['polar_config.json {"bits": 5.0}'](folder)
    assert hlwq_core.open_checkpoint(folder).claim == {"bits": 5}


@pytest.mark.parametrize("name", ["a block of number 9,999,999", "many stacks with gaps"])
def test_gaps_that_no_model_has_are_not_counted_up(tmp_path: Path, name: str) -> None:
    folder = attacks.sound(tmp_path / "c")
    attacks.ATTACKS[name](folder)
    assert len(inspect(folder).missing) < 1000


@pytest.mark.parametrize("name", [name for name in attacks.SIDES if "config" not in name and "record" not in name])
def test_the_same_files_as_a_source(tmp_path: Path, original: Path, name: str) -> None:
    folder = tmp_path / "dense"
    (folder / "polarquant" / "codes").mkdir(parents=True)
    shutil.copy(original, folder / "model.safetensors")
    attacks.ATTACKS[name](folder)
    with pytest.raises(HLWQError):
        quantize(folder, tmp_path / "out", rules="plain")


INDEXES = {
    **{name: content for name, content in attacks.CONFIGS.items() if ": " not in name},
    "no map": "{}",
    "a map of numbers": '{"weight_map": {"a": 5}}',
    "a map that is a list": '{"weight_map": ["a"]}',
    "a name with NUL": '{"weight_map": {"a": "b\\u0000.safetensors"}}',
    "a long name": json.dumps({"weight_map": {"a": attacks.LONG}}),
    "a deep name": json.dumps({"weight_map": {"a": "b/" * 5000}}),
    "half a character in a name": '{"weight_map": {"a": "b\\ud800"}}',
    "no files": '{"weight_map": {}}',
    "a folder": '{"weight_map": {"a": "."}}',
    "outside": '{"weight_map": {"a": "../dense.safetensors"}}',
    "outside as Windows writes it": '{"weight_map": {"a": "..\\\\dense.safetensors"}}',
}


@pytest.mark.parametrize("name", INDEXES)
def test_indexes_of_shards(tmp_path: Path, original: Path, name: str) -> None:
    shutil.copy(original, tmp_path / "model.safetensors")
    attacks.side("model.safetensors.index.json", INDEXES[name])(tmp_path)
    with pytest.raises(HLWQError) as caught:
        quantize(tmp_path, tmp_path.parent / f"{tmp_path.name}-out", rules="plain")
    assert caught.value.file == str(tmp_path / "model.safetensors.index.json")
