"""How a checkpoint's codes are to be read: bits, packing and codebook of each layer, from names, notes and the data."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from ..errors import FormatError
from ..format.codebook import VERSIONS, register_stored
from ..format.sizes import BITS
from .detect import SAMPLE_LAYERS, Detection, bits_in_use, detect, sample_codes, sample_rows
from .index import Layer

_ORDERS = ("msb", "lsb")
# Blocks that are looked at for a layer's own figures: of 1,347 layers, 27 MB are read.
TOGETHER = 256


class Reading:
    """Found once for layers that are alike: of the same bits and possible packings.

    Args:
        layers: of the checkpoint.
        metadata: of its files; `hlwq.bit_order` and `hlwq.codebook` are what its writer noted.
        codebook, bit_order: what the user insists on; None to find it.

    Attributes:
        detections: (bits, first packing) → what was found.
    """

    def __init__(
        self, layers: Collection[Layer], metadata: Mapping[str, str], codebook: str | None, bit_order: str | None
    ):
        self._layers = layers
        self._noted_order = metadata.get("hlwq.bit_order")
        self._noted_codebook = metadata.get("hlwq.codebook")
        self._codebook = codebook
        self._order = bit_order
        self.detections: dict[tuple[int, str], Detection] = {}
        self._bits_seen: set[tuple[int, str]] = set()

    def of(self, layer: Layer) -> tuple[str, str]:
        """Packing and codebook of a layer.

        Raises:
            FormatError: the codes are of other bits than the codebook.
        """
        if not layer.bits:
            self._find_bits()
        packings = layer.packings
        self._check_bits(layer.bits, packings)
        if layer.variant.own_table and "table" in layer.parts:
            return packings[0], register_stored(layer.table())
        found = self._detection(layer.bits, packings)
        packing = self._order if self._order in packings else found.packing
        return packing, self._codebook or found.codebook

    def assumed(self) -> list[str]:
        """What neither data nor metadata told, nor the user: then the published files' way is taken."""
        unsure = [found for found in self.detections.values() if not found.sure]
        order = any(found.packing in _ORDERS for found in unsure) and not (self._order or self._noted_order)
        codebook = bool(unsure) and not (self._codebook or self._noted_codebook)
        return [what for what, is_assumed in (("bit order", order), ("codebook", codebook)) if is_assumed]

    def _sample(self, bits: int, packings: tuple[str, ...]) -> list[Layer]:
        """Some layers of these bits and packings."""
        alike = [layer for layer in self._layers if layer.bits == bits and layer.packings == packings]
        # The largest layers: their rows are the least like special cases.
        alike.sort(key=lambda layer: layer.rows * layer.num_blocks, reverse=True)
        return alike[:: max(1, len(alike) // SAMPLE_LAYERS)][:SAMPLE_LAYERS]

    def _find_bits(self) -> None:
        """The bits of codes that lie one a byte, with no claim and no table that tells them (V3): found in the codes."""
        bits = bits_in_use(_codes(self._sample(0, ("byte",)), 8, "byte")) or 5
        for layer in self._layers:
            layer.bits = layer.bits or bits

    def _check_bits(self, bits: int, packings: tuple[str, ...]) -> None:
        """Refuse codes that use less of their table than half, or more than there is (once for layers that are alike)."""
        if packings[0] not in ("byte", "nibble") or (bits, packings[0]) in self._bits_seen:
            return
        layers = self._sample(bits, packings)
        found = bits_in_use(_codes(layers, bits, packings[0]))
        # A file may bring a table of any size; the others' tables are ours.
        if found is not None and (found != bits or bits not in BITS and not layers[0].variant.own_table):
            file, key = layers[0].parts["codes"]
            raise FormatError(
                "the codes have other bits than the codebook",
                file=file.path,
                tensor=key,
                expected=f"{bits} bits, as size, codebook or polar_config.json say",
                found=f"{found} bits: no code is above {(1 << found) - 1}",
                fix="download the checkpoint again: these files do not belong together, or HLWQ does not have such bits",
            )
        self._bits_seen.add((bits, packings[0]))

    def _detection(self, bits: int, packings: tuple[str, ...]) -> Detection:
        key = (bits, packings[0])
        if key not in self.detections:
            order, version = self._noted_order, self._noted_codebook
            self.detections[key] = detect(
                [_sample_of(layer) for layer in self._sample(bits, packings)],
                bits,
                (order,) if order in packings else packings,
                (version,) if version in VERSIONS else VERSIONS,
            )
        return self.detections[key]


def _codes(layers: list[Layer], bits: int, packing: str) -> torch.Tensor:
    """Codes of a sample of the blocks of some layers, uint8, flat."""
    samples = (sample_codes(*_sample_of(layer), bits, packing) for layer in layers)
    return torch.cat([torch.empty(0, dtype=torch.uint8), *(s.reshape(-1) for s in samples if s is not None)])


def rows_together(layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and norms of some rows in the middle, about `TOGETHER` blocks: one place of the disk."""
    count = min(layer.rows, max(1, TOGETHER // layer.num_blocks))
    first = (layer.rows - count) // 2
    return _rows(layer, list(range(first, first + count)))


def _rows(layer: Layer, numbers: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    codes, norms = (
        stored.file.rows(stored.key, numbers, layer.rows) for stored in (layer.parts["codes"], layer.parts["norms"])
    )
    return codes.view(torch.uint8), norms.to(torch.float16)


def _sample_of(layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and norms of the rows that the detection looks at; of all rows where those are zero."""
    codes, norms = _rows(layer, sample_rows(layer.rows, layer.num_blocks))
    if not bool((norms > 0).any()):
        return layer.codes(), layer.norms()
    return codes, norms
