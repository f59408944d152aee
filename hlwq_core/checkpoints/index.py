"""From the headers of a checkpoint's files to its layers: sorted, checked against each other, whole or named as cut."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..errors import FormatError, IncompleteError, UnsupportedError
from ..format import variants
from ..format.codebook import BLOCK
from ..format.safefile import Entry, SafeFile
from ..format.sizes import BITS
from ..format.variants import Variant
from ..models import families

_FLOATS = ("F16", "F32", "BF16")
_LEVELS = tuple(1 << bits for bits in range(1, 9))
_OTHER_KIND = "download this file again; if it is of another kind, this pack does not read it"


class Stored(NamedTuple):
    """A tensor of a file."""

    file: SafeFile
    key: str

    @property
    def entry(self) -> Entry:
        return self.file.entries[self.key]

    def tensor(self) -> torch.Tensor:
        """A view of the mapped file."""
        return self.file.tensor(self.key)


@dataclass
class Layer:
    """One quantized tensor.

    Attributes:
        base: its keys without their endings.
        variant: how it is written.
        parts: `codes`, `norms`, `meta`, `table` → where they lie.
        rows, num_blocks: of its weight.
        bits: of a code; 0 where only the codes tell.
        byte_codes: each code fills a byte.
    """

    base: str
    variant: Variant
    parts: dict[str, Stored] = field(default_factory=dict)
    rows: int = 0
    num_blocks: int = 0
    bits: int = 0
    byte_codes: bool = False
    _meta: list[int] = field(default_factory=list)

    @property
    def packings(self) -> tuple[str, ...]:
        """The packings that its codes may have, the most common first."""
        return self.variant.packings(self.bits, self.byte_codes)

    def codes(self) -> torch.Tensor:
        """uint8 `[rows, row_bytes]`, a view of the mapped file."""
        codes = self.parts["codes"].tensor()
        return (codes.view(torch.uint8) if codes.dtype == torch.int8 else codes).reshape(self.rows, -1)

    def norms(self) -> torch.Tensor:
        """float16 `[rows, num_blocks]`; a view of the mapped file where they are float16 there."""
        return self.parts["norms"].tensor().to(torch.float16)

    def table(self) -> torch.Tensor:
        """The codebook that the file carries, as decoders want it, float32 `[2**bits]`.

        Raises:
            FormatError: it is not finite.
        """
        file, key = self.parts["table"]
        table = variants.scaled(key, file.tensor(key))
        if not bool(torch.isfinite(table).all()):
            raise FormatError(
                "a codebook that is not finite: its layers would decode to NaN",
                file=file.path,
                tensor=key,
                expected="finite levels",
                found=f"{int((~torch.isfinite(table)).sum())} of {table.numel()} NaN or infinite",
                fix="download this file again",
            )
        return table

    def columns(self) -> int | None:
        """The width of a row that the layer's own meta tells; None where it tells none.

        Raises:
            FormatError: meta is of a wrong form, or contradicts the norms.
        """
        if "meta" not in self.parts:
            return None
        self._meta = self._meta or self._read_meta()
        if len(self._meta) < 5:
            return None
        columns = self._meta[4]
        if -(-columns // BLOCK) != self.num_blocks:
            raise self._contradiction(f"an in_features that pads to {self.num_blocks * BLOCK}", columns)
        return columns

    def _read_meta(self) -> list[int]:
        file, key = self.parts["meta"]
        entry = file.entries[key]
        if entry.dtype != "I64" or entry.shape not in ((4,), (5,)):
            raise FormatError(
                "a meta tensor of a wrong form",
                file=file.path,
                tensor=key,
                expected="I64 [4] or [5]",
                found=f"{entry.dtype} {list(entry.shape)}",
                fix="download this file again",
            )
        meta: list[int] = file.rows(key, [0], 1)[0].tolist()
        expected = [self.rows, self.num_blocks, BLOCK, self.rows * self.num_blocks * BLOCK]
        if meta[:4] != expected:
            raise self._contradiction(f"{expected} (out, blocks, block size, codes)", meta[:4])
        return meta

    def _contradiction(self, expected: str, found: object) -> FormatError:
        return FormatError(
            "meta contradicts the norms",
            file=self.parts["meta"].file.path,
            tensor=self.parts["meta"].key,
            expected=expected,
            found=found,
            fix="download this file again",
        )


@dataclass
class Index:
    """What a checkpoint's headers tell, by the model's names.

    Attributes:
        layers: the quantized tensors, checked.
        plain: those stored as they are.
        cut: quantized tensors that lack a part.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    plain: dict[str, Stored] = field(default_factory=dict)
    cut: dict[str, Layer] = field(default_factory=dict)

    def rename(self, wanted: dict[str, str]) -> None:
        """Give layers whose names were ambiguous the names of a model: `wanted` has them by what V1 writes."""

        def named(layers: dict[str, Layer]) -> dict[str, Layer]:
            return {
                (wanted.get(variants.undoubled(layer.base), name) if layer.variant.undotted else name): layer
                for name, layer in layers.items()
            }

        self.layers, self.cut = named(self.layers), named(self.cut)


def build(path: Path, files: list[SafeFile], claim: dict[str, Any] | None, partial: bool) -> Index:
    """Sort the tensors of a checkpoint's files, and check each layer by what the headers tell.

    Args:
        path: for messages.
        files: of codes and of plain tensors.
        claim: polar_config.json, with `bits`.
        partial: put layers that lack a part into `cut` instead of raising.

    Raises:
        UnsupportedError: another format.
        FormatError: tensors contradict each other.
        IncompleteError: a layer lacks a part.
    """
    layers, plain = _sorted(files)
    if not layers:
        raise FormatError(
            "there are no quantized tensors: this is no HLWQ checkpoint",
            file=path,
            expected="tensors that end in __packed, __codes or .codes",
            found=f"{len(plain)} plain tensors in {len(files)} files",
            fix="choose the folder that holds polarquant/ (or hlwq/), or quantize this model: "
            "python -m hlwq_core quantize",
        )
    index = Index(plain=plain)
    known = families.undotted_names()
    claimed = (claim or {}).get("bits")
    for layer in layers.values():
        name = layer.variant.model_name(layer.base, known, lambda base: families.shape(base) is not None)
        missing = next((part for part in layer.variant.parts if part not in layer.parts), None)
        if missing is not None:
            if not partial:
                raise _cut(layer, missing, len(files))
            index.cut[name] = layer
            continue
        _measure(layer, claimed)
        if name in index.layers or name in index.plain:
            there = index.layers[name].parts["codes"] if name in index.layers else index.plain[name]
            raise FormatError(
                "one weight is stored twice",
                file=layer.parts["codes"].file.path,
                tensor=name,
                expected="each weight once",
                found=f"also in {there.file.path}",
                fix="remove the file that does not belong to this checkpoint",
            )
        index.layers[name] = layer
    return index


def _sorted(files: list[SafeFile]) -> tuple[dict[str, Layer], dict[str, Stored]]:
    """Layers by base, and plain tensors, by the names of the keys alone."""
    layers: dict[str, Layer] = {}
    plain: dict[str, Stored] = {}
    for file in files:
        for key in file:
            if variants.is_eoq(key, file.__contains__):
                raise UnsupportedError(
                    "this is an EOQ checkpoint (.codes and .scales), which this pack does not read",
                    file=file.path,
                    tensor=key,
                    expected="HLWQ: codes with norms",
                    found="codes with scales",
                    fix="get the HLWQ (PolarQuant) version of the model",
                )
            split = variants.split(key, lambda name: any(name in other for other in files))
            if split is None:
                _once(plain, key, Stored(file, key))
                continue
            base, part, variant = split
            layer = layers.setdefault(base, Layer(base, variant))
            if variant.told_by_codes and part == "codes":
                layer.variant = variant
            _once(layer.parts, part, Stored(file, key))
    return layers, plain


def _once(there: dict[str, Stored], what: str, stored: Stored) -> None:
    if what in there:
        raise FormatError(
            "one tensor lies in two files",
            file=stored.file.path,
            tensor=stored.key,
            expected="each tensor once",
            found=f"also in {there[what].file.path}",
            fix="remove the file that does not belong to this checkpoint",
        )
    there[what] = stored


def _cut(layer: Layer, missing: str, files: int) -> IncompleteError:
    return IncompleteError(
        f"a layer has no {missing}",
        file=next(iter(layer.parts.values())).file.path,
        tensor=layer.base,
        expected=f"its {missing} in one of {files} files",
        found=", ".join(key for _, key in layer.parts.values()),
        fix="a chunk is missing: download the checkpoint again, or complete it with python -m hlwq_core repair",
    )


# -- one layer ---------------------------------------------------------------------------------------------------------


def _measure(layer: Layer, claimed: int | None) -> None:
    """Rows, blocks and bits of a layer, as its tensors' sizes tell them; refused where they contradict each other."""
    codes, norms = layer.parts["codes"], layer.parts["norms"]
    if codes.entry.dtype not in ("U8", "I8"):
        raise FormatError(
            "codes of a wrong dtype",
            file=codes.file.path,
            tensor=codes.key,
            expected="U8 or I8",
            found=codes.entry.dtype,
            fix=_OTHER_KIND,
        )
    dtype, shape = norms.entry.dtype, norms.entry.shape
    if dtype not in _FLOATS or len(shape) != 2 or 0 in shape:
        raise FormatError(
            "norms of a wrong form",
            file=norms.file.path,
            tensor=norms.key,
            expected="F16 [out_features, blocks a row]",
            found=f"{dtype} {list(shape)}",
            fix=_OTHER_KIND,
        )
    layer.rows, layer.num_blocks = shape
    blocks = layer.rows * layer.num_blocks
    layer.bits, left = divmod(codes.entry.nbytes * 8, BLOCK * blocks)
    layer.byte_codes = layer.bits == 8
    if left or not 1 <= layer.bits <= 8:
        raise FormatError(
            "codes and norms contradict each other: the codes are too short, or cut off",
            file=codes.file.path,
            tensor=codes.key,
            expected=f"16 · bits bytes for each of {blocks} blocks (5 bits: {80 * blocks})",
            found=f"{codes.entry.nbytes} bytes",
            fix="download this file again and compare its size",
        )
    if not layer.variant.sized and layer.byte_codes:
        layer.bits = claimed or 0  # 0: the codes tell, once they are read
    if layer.variant.own_table:
        if "table" in layer.parts:
            _take_bits_of_table(layer)
    else:
        _check_bits(layer, claimed)


def _take_bits_of_table(layer: Layer) -> None:
    table, codes = layer.parts["table"], layer.parts["codes"]
    levels = math.prod(table.entry.shape)
    if levels not in _LEVELS or table.entry.dtype not in (*_FLOATS, "F64"):
        raise FormatError(
            "a codebook of a wrong size or dtype",
            file=table.file.path,
            tensor=table.key,
            expected="2, 4, 8 … 256 levels, floating",
            found=f"{levels} levels, {table.entry.dtype} {list(table.entry.shape)}",
            fix="download this file again",
        )
    stored, layer.bits = layer.bits, levels.bit_length() - 1
    if stored not in (8, layer.bits if layer.bits > 4 else 4):
        raise FormatError(
            "codes and codebook contradict each other",
            file=codes.file.path,
            tensor=codes.key,
            expected=f"codes for the {levels} levels of {table.key}",
            found=f"codes of {stored} bits",
            fix="download this file again: its tensors do not belong together",
        )


def _check_bits(layer: Layer, claimed: int | None) -> None:
    codes = layer.parts["codes"]
    if layer.bits not in BITS and layer.bits:
        raise UnsupportedError(
            "a number of bits that HLWQ does not have",
            file=codes.file.path,
            tensor=codes.key,
            expected=", ".join(map(str, BITS)),
            found=layer.bits,
            fix=_OTHER_KIND,
        )
    if claimed is not None and layer.bits != claimed:
        raise FormatError(
            "the codes have other bits than polar_config.json claims",
            file=codes.file.path,
            tensor=codes.key,
            expected=f"{claimed} bits",
            found=f"{layer.bits} bits",
            fix="download the checkpoint again: these files do not belong together",
        )
