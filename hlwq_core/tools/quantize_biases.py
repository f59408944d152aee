"""Bias corrections between the coding of a layer and the writing of what is kept: they outlive a run that is stopped.

They lie in a hidden folder beside the target (`.NAME.quantizing.biases`), a file for each chunk of codes, until it is written.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from ..errors import HLWQError
from ..format.safefile import Entry, SafeFile
from ..format.writer import write_safetensors
from ..models.recipes import FLOATING


def bias_of(name: str, entries: Mapping[str, tuple[object, Entry]]) -> str | None:
    """The bias that belongs to a weight; None where the layer has none."""
    if not name.endswith("weight") or name not in entries:
        return None
    bias = name.removesuffix("weight") + "bias"
    found = entries.get(bias)
    if found is None or found[1].dtype not in FLOATING or found[1].shape != entries[name][1].shape[:1]:
        return None
    return bias


class Biases:
    """What is to be added to biases, by their names, float32 `[out]`.

    Args:
        target: of the whole work.
    """

    def __init__(self, target: Path):
        self._folder = target.with_name(f".{target.name}.quantizing.biases")
        self._found: dict[str, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, bias: object) -> bool:
        return bias in self._found

    def add(self, bias: str, correction: torch.Tensor) -> None:
        """Remember one."""
        self._found[bias] = correction

    def save(self, chunk: str, names: list[str]) -> None:
        """Write those of a chunk, as far as there are any."""
        there = [name for name in names if name in self._found]
        if there:
            entries = [
                (n, torch.float32, tuple(self._found[n].shape), partial(self._found.__getitem__, n)) for n in there
            ]
            write_safetensors(self._folder / chunk, entries, {"format": "pt"})

    def load(self, chunk: str, names: list[str]) -> bool:
        """Take those of a chunk that an earlier run made; False if one of them is not there."""
        if not names:
            return True
        try:
            file = SafeFile(self._folder / chunk, mapped=False)
            found = {name: file.tensor(name) for name in names if name in file}
        except HLWQError:
            return False
        self._found.update(found)
        return found.keys() == set(names)

    def corrected(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A kept tensor, corrected where it is one of them."""
        correction = self._found.get(name)
        return tensor if correction is None else (tensor.float() + correction).to(tensor.dtype)

    def discard(self) -> None:
        """Nothing of it is needed any more."""
        shutil.rmtree(self._folder, ignore_errors=True)
