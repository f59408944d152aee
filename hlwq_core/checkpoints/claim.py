"""polar_config.json: what a checkpoint's author claims of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import FormatError, UnsupportedError
from ..format.bounded import read_object, whole_number
from ..format.codebook import BLOCK
from ..format.sizes import BITS
from .find import is_folder

_NAME = "polar_config.json"


def read_claim(path: Path) -> dict[str, Any] | None:
    """The claim of a folder, or beside a file, with the `bits` that its format claims; None where there is none.

    Raises:
        FormatError: it is no such file.
        UnsupportedError: blocks or bits that this pack does not read.
    """
    folder = path if is_folder(path) else path.parent
    for file in (folder / inside / _NAME for inside in ("", "polarquant", "hlwq")):
        if os.path.lexists(file):
            return _checked(file, read_object(file, _NAME))
    return None


def _checked(file: Path, claim: dict[str, Any]) -> dict[str, Any]:
    if whole_number(claim.get("block_size", BLOCK), BLOCK, BLOCK) is None:
        raise UnsupportedError(
            "blocks of another size",
            file=file,
            expected=BLOCK,
            found=repr(claim["block_size"]),
            fix="this pack reads blocks of 128 only: look for such a version of the model",
        )
    name = claim.get("format")
    prefix, _, bits = name.rpartition("-q") if isinstance(name, str) else ("", "", "")
    if prefix in ("hlwq", "polarquant") and bits.isascii() and bits.isdigit() and len(bits) < 10:
        claim.setdefault("bits", int(bits))
    if claim.get("bits") is None:
        claim.pop("bits", None)
        return claim
    found = whole_number(claim["bits"], 0, 1 << 32)
    if found is None:
        raise FormatError(
            f"the bits that {_NAME} claims are no number",
            file=file,
            expected=", ".join(map(str, BITS)),
            found=repr(claim["bits"]),
            fix="download this file again, or remove it: the files tell their bits themselves",
        )
    if found not in BITS:
        raise UnsupportedError(
            "a number of bits that HLWQ does not have",
            file=file,
            expected=", ".join(map(str, BITS)),
            found=found,
            fix="download the checkpoint again; if it is of another kind, this pack does not read it",
        )
    return claim | {"bits": found}
