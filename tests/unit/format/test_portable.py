"""Names that some system reads as something else: devices, streams, folders, other names."""

from __future__ import annotations

import pytest

from hlwq_core.format.portable import LONGEST, portable, why_not

BAD = [
    "", ".", "..", "a/b", "a\\b", "C:x", "a:stream", "a\x00b", "a\nb", "a\x7f", "\ud800", "a*", "a?", "a|b", "<a>", '"a"',
    "a.", "a ", " a", "a. .", "con", "CON.safetensors", "Nul.tar.gz", "aux", "prn.txt", "com1", "COM¹.x", "lpt9.mp4", "con .x",
    "conin$", "n" * 256, "é" * 128, "n" * 300 + ".mp4",
]  # fmt: skip
GOOD = [
    "a",
    "a.mp4",
    "console.txt",
    "com10.x",
    "común",
    "model-00001-of-00002.safetensors",
    "n" * 255,
    "é" * 127,
    ".hidden",
]


@pytest.mark.parametrize("name", BAD)
def test_names_that_are_not_read_alike(name: str) -> None:
    assert why_not(name)
    made = portable(name)
    assert why_not(made) is None and len(made.encode()) <= LONGEST
    assert not name.endswith(".mp4") or made.endswith(".mp4")


@pytest.mark.parametrize("name", GOOD)
def test_names_that_are(name: str) -> None:
    assert why_not(name) is None and portable(name) == name
