"""Whatever is read is refused by name or taken: a little of what `tests/attacks/fuzz.py` does at length."""

from __future__ import annotations

import random

import pytest

from hlwq_core.codec.calibration import VERSION
from hlwq_core.errors import HLWQError

from ..attacks import readers
from ..attacks.fuzz import spoil

SLOW = ("header", "codes", "norms", "meta", "table")  # a checkpoint is opened and decoded
# What once came out as a bare error.
FAULTS = {
    "calibration": [
        b'{"hlwq.calibration": "%s", "hlwq.samples": "3", "hlwq.identity": "{}", "hlwq.layers": "{\\"a\\": {\\"count\\": 9999, '
        b'\\"calls\\": 3, \\"of\\": \\"a\\"}, \\"b\\": {\\"count\\": 1, \\"calls\\": 1, \\"of\\": \\"c\\"}}"}' % VERSION.encode()
    ],
    "replacement": [b'{"format": "hlwq-replacing", "away": [], "into": [], "discard": ["\\u0000"]}'],
    "hub": [b'{"id": "a/b", "sha": "0", "siblings": [{"rfilename": true}]}', b'{"id": "a/b", "sha": [], "siblings": []}'],
    "object_info": [b'{"input": {"required": {"x": {}}, "optional": "0"}}', b'{"input": {"required": {"x": [["a"], 1]}}}'],
    "sensitivity": [b'{"hlwq.sensitivity": "1", "layers": {"a": {"3": 1%s}}}' % (b"0" * 400)],
    "history": [b'{"status": {"messages": [["execution_error"]]}, "traceback": [1]}'],
    "server": [b'{"node_errors": {"1": {"errors": [{"type": "value_not_in_list", "extra_info": 1}]}}}', b"[]"],
    "workflow": [b'{"%s": {"class_type": "HLWQLoadCheckpoint", "inputs": {}}}' % (b"9" * 5000)],
}  # fmt: skip


@pytest.mark.parametrize("name", readers.READERS)
def test_sound_files_are_taken(name: str) -> None:
    assert any(readers.attempt(readers.READERS[name], data) is None for data in readers.READERS[name].seeds())


@pytest.mark.parametrize("name", readers.READERS)
def test_spoiled_files_are_refused_by_name_or_taken(name: str) -> None:
    reader, numbers = readers.READERS[name], random.Random(name)
    seeds = reader.seeds()
    refused = 0
    for _ in range(40 if name in SLOW else 400):
        data = spoil(numbers.choice(seeds), numbers)
        try:
            refused += isinstance(readers.attempt(reader, data), HLWQError)
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error} came of {data!r}")
    assert refused or name in (
        "object_info",
        "server",
        "history",
    )  # these end in answers: the reader itself looks at errors


@pytest.mark.parametrize(("name", "data"), [(name, data) for name, found in FAULTS.items() for data in found])
def test_what_was_a_bare_error_once(name: str, data: bytes) -> None:
    readers.attempt(readers.READERS[name], data)
