"""The four ways in which HLWQ tensors are named and stored. Whoever asks how a variant is written asks here.

One checkpoint may mix them:

| variant | keys | codes |
| --- | --- | --- |
| V1 | the model's name with `__` for `.`, then `__packed`, `__norms`, `__meta` | a bit stream |
| V2 | the model's name with dots, then `__packed`, `__norms`, `__meta` | a bit stream |
| V3 | `P__codes`, `P__norms` | one a byte; nothing tells their bits |
| V4 | `L.codes`, `L.norms`, `L.ct_scaled` or `L.ct` | a bit stream, nibbles or bytes; the codebook is stored |

`meta` is int64: rows, blocks a row, 128, codes in all, and in V2 (V1: of padded layers) the columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from .codebook import BLOCK, SQRT_BLOCK
from .packing import row_bytes
from .writer import Producer

# A tensor for the writer: name, dtype, shape, and what makes it.
Announced = tuple[str, torch.dtype, tuple[int, ...], Producer]


@dataclass(frozen=True)
class Variant:
    """One way of naming and storing.

    Attributes:
        name: `V1` to `V4`.
        parts: what a layer is cut without.
        undotted: the key has `__` for the dots of the model's name.
        weight_implied: the key may lack the `.weight` of the model's name.
        told_by_codes: the key of the codes tells the variant, those of the other parts do not.
        sized: the bytes of the codes tell how many bits a code has.
        own_table: the file may carry the codebook, of any number of bits.
        written: this pack writes it, and can complete a layer that is cut in two.
    """

    name: str
    parts: tuple[str, ...] = ("codes", "norms")
    undotted: bool = False
    weight_implied: bool = False
    told_by_codes: bool = False
    sized: bool = True
    own_table: bool = False
    written: bool = False

    def packings(self, bits: int, byte_codes: bool) -> tuple[str, ...]:
        """The packings that codes of so many bits may have, the most common first; `byte_codes`: each fills a byte."""
        if byte_codes:
            return ("byte",)
        if self is V4:
            return ("nibble",) if bits <= 4 else ("lsb", "msb")
        return ("msb", "lsb")

    def model_name(self, base: str, known: Mapping[str, str], has: Callable[[str], bool]) -> str:
        """The model's name of a layer.

        Args:
            base: the layer's keys without their endings.
            known: names with `__` for `.` → names of models that are known: undoing `__` is ambiguous.
            has: whether a known model has a tensor of this name.
        """
        base = undoubled(base)
        if self.undotted:
            return known.get(base, base.replace("__", "."))
        if self.weight_implied:
            base = known.get(base, base.replace("__", ".") if "." not in base else base)
            return base if base.rpartition(".")[2] == "weight" or has(base) else f"{base}.weight"
        return base


V1 = Variant("V1", ("codes", "norms", "meta"), undotted=True, written=True)
V2 = Variant("V2", written=True)
V3 = Variant("V3", weight_implied=True, told_by_codes=True, sized=False)
V4 = Variant("V4", weight_implied=True, told_by_codes=True, own_table=True)
VARIANTS = (V1, V2, V3, V4)

_PARTS = {"packed": "codes", "codes": "codes", "norms": "norms", "meta": "meta"}
_V4_PARTS = {"codes": "codes", "norms": "norms", "ct_scaled": "table", "ct": "table"}
# What keys of codes end in.
CODES = ("__packed", "__codes", ".codes")


def holds_codes(keys: Iterable[str]) -> bool:
    """Whether some of a file's keys are codes: whether it is (a part of) an HLWQ checkpoint."""
    return any(key.endswith(CODES) for key in keys)


def is_eoq(key: str, has: Callable[[str], bool]) -> bool:
    """Whether a key belongs to another format, EOQ: codes with scales. `has`: whether the same file has a key."""
    return key.endswith(".scales") and has(key[: -len("scales")] + "codes")


def split(key: str, has: Callable[[str], bool]) -> tuple[str, str, Variant] | None:
    """What a key is of a quantized tensor: base, part (`codes`, `norms`, `meta`, `table`) and variant; None: plain.

    Args:
        key: a tensor's name in the file.
        has: whether the checkpoint has a key (V4's endings are words that other tensors may have).
    """
    base, double, ending = key.rpartition("__")
    if double and ending in _PARTS:
        return base, _PARTS[ending], V3 if ending == "codes" else V2 if "." in base else V1
    base, dot, ending = key.rpartition(".")
    if dot and ending in _V4_PARTS and has(f"{base}.codes"):
        return base, _V4_PARTS[ending], V4
    return None


def base_of(key: str) -> str:
    """The keys of a layer of V1 or V2 without their ending."""
    return key.rpartition("__")[0]


def scaled(key: str, table: torch.Tensor) -> torch.Tensor:
    """A stored codebook as decoders want it, divided by √128: `ct_scaled` is, `ct` is not. float32 `[levels]`."""
    table = table.reshape(-1).float()
    return table if key.endswith("ct_scaled") else table / SQRT_BLOCK


def undoubled(base: str) -> str:
    """Some writers append `weight` to names that already end in it."""
    for tail in ("__weight", ".weight"):
        if base.endswith(tail * 2):
            return base[: -len(tail)]
    return base


def undotted(name: str) -> str:
    """A model's name as V1 writes it."""
    return name.replace(".", "__")


def layer_entries(
    name: str,
    shape: tuple[int, int],
    bits: int,
    packed: Producer,
    norms: Producer,
    *,
    dotted: bool,
    base: str | None = None,
) -> dict[str, Announced]:
    """A layer's tensors for the writer, by part: V2 (dots kept) or V1, which the author's tools read.

    V1's `__` for `.` cannot always be undone; such names keep their dots. A fifth item in meta tells a padded layer's
    width; V1 has it only where it is needed, because the author's reader expects four.

    Args:
        name: the model's name.
        shape: `(out_features, in_features)`.
        packed, norms: make the codes, uint8 `[bytes]`, and the norms, float16 `[out_features, blocks]`.
        dotted: V2.
        base: the keys without their endings, where other parts of the layer have them already.
    """
    rows, columns = shape
    blocks = -(-columns // BLOCK)
    if base is None:
        base = undotted(name)
        if dotted or base.replace("__", ".") != name:
            base = name
    meta = [rows, blocks, BLOCK, rows * blocks * BLOCK]
    if dotted or columns % BLOCK:
        meta.append(columns)
    return {
        "codes": (f"{base}__packed", torch.uint8, (rows * row_bytes(blocks, bits, "msb"),), packed),
        "norms": (f"{base}__norms", torch.float16, (rows, blocks), norms),
        "meta": (f"{base}__meta", torch.int64, (len(meta),), lambda: torch.tensor(meta)),
    }


def metas_first(entries: list[Announced]) -> list[Announced]:
    """The same entries for the writer, all metas at the file's begin: whoever opens it reads them, and nothing between."""
    return sorted(entries, key=lambda entry: not entry[0].endswith("__meta"))
