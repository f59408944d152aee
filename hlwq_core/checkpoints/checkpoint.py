"""Opening an HLWQ checkpoint: which tensors there are, where their bytes lie, and decoding any range of them.

A checkpoint is a folder (published layout, or any other arrangement of safetensors files) or a single file. It is
recognised by its tensors' names, never by file names. Four variants of names exist; one checkpoint may mix them:

| variant | keys |
| --- | --- |
| V1 | the model's name with `__` for `.`, then `__packed`, `__norms`, `__meta` |
| V2 | the model's name with dots, then `__packed`, `__norms`, `__meta` |
| V3 | `P__codes`, `P__norms`: one code a byte |
| V4 | `L.codes`, `L.norms`, `L.ct_scaled` or `L.ct`: the codebook is stored |
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import FormatError, IncompleteError, InputError, UnsupportedError
from ..format.codebook import BLOCK, SQRT_BLOCK, VERSIONS, register_stored, scaled_table
from ..format.packing import BITS, row_bytes
from ..format.safefile import DTYPES, SafeFile, Source
from ..models import manifest
from ..running import operators
from .detect import SAMPLE_LAYERS, Detection, bits_in_use, detect, sample_codes, sample_rows

_SUFFIXES = {"packed": "codes", "codes": "codes", "norms": "norms", "meta": "meta"}
# The tensors that only latent upscalers have (ComfyUI recognises them by the same names).
_UPSCALER_KEYS = ("initial_conv.weight", "post_upsample_res_blocks.0.conv1.weight")


@dataclass(frozen=True)
class LayerInfo:
    """What is known of a quantized tensor without decoding it.

    Attributes:
        name: the model's name.
        shape: `(out_features, in_features)`.
        bits: bits a code.
        variant: `V1` to `V4`.
        packing: `msb`, `lsb`, `nibble` or `byte`.
        codebook: `infinite`, `finite`, or `stored-…` for one that the file carries.
        num_blocks: blocks a row.
        nbytes: bytes of codes and norms.
        files: where they lie.
    """

    name: str
    shape: tuple[int, int]
    bits: int
    variant: str
    packing: str
    codebook: str
    num_blocks: int
    nbytes: int
    files: tuple[Path, ...]


@dataclass(frozen=True)
class PackedLayer:
    """A quantized weight as it lies in the files: views of the mapped bytes.

    Attributes:
        codes: uint8 `[out_features, row_bytes]`.
        norms: float16 `[out_features, num_blocks]`.
        bits, packing, codebook: as in `LayerInfo`.
        shape: `(out_features, in_features)`.
    """

    codes: torch.Tensor
    norms: torch.Tensor
    bits: int
    packing: str
    codebook: str
    shape: tuple[int, int]

    def table(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """The codebook / √128, float32 `[2**bits]`."""
        return scaled_table(self.codebook, self.bits, str(device))


@dataclass
class _Layer:
    """The parts of one quantized tensor: part → (file, key)."""

    base: str
    variant: str
    parts: dict[str, tuple[SafeFile, str]] = field(default_factory=dict)
    bits: int = 0
    num_blocks: int = 0
    rows: int = 0
    byte_codes: bool = False
    meta: list[int] | None = None


def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    codebook: str | None = None,
    bit_order: str | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    partial: bool = False,
    source: Source | None = None,
) -> Checkpoint:
    """Open a checkpoint; headers are read, no weight is.

    Args:
        path: a folder or a `.safetensors` file.
        codebook: `infinite` or `finite` to insist on a version; None finds it in the data.
        bit_order: `msb` or `lsb` to insist; None finds it in the data.
        shapes: the model's shapes by name, for files that do not tell a padded layer's width.
        partial: put layers that lack codes, norms or meta into `cut` instead of raising: for inspecting and repairing.
        source: who maps the files, for a program that has its own way to bring mapped bytes to a device.

    Raises:
        InputError: no such path, or an unknown choice.
        UnsupportedError: a known other format, named as such.
        FormatError: a file is corrupt, or its tensors contradict each other.
        IncompleteError: a layer's codes or norms are in no file.
    """
    return Checkpoint(Path(path), codebook=codebook, bit_order=bit_order, shapes=shapes, partial=partial, source=source)


class Checkpoint:
    """An index of an HLWQ checkpoint; see `open_checkpoint`."""

    def __init__(
        self,
        path: Path,
        *,
        codebook: str | None = None,
        bit_order: str | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        partial: bool = False,
        source: Source | None = None,
    ):
        for what, value, choices in (
            ("codebook", codebook, VERSIONS),
            ("bit order", bit_order, ("msb", "lsb")),
        ):
            if value is not None and value not in choices:
                raise InputError(
                    f"unknown {what}",
                    expected=", ".join(choices),
                    found=value,
                    fix="leave it out: it is then found in the data",
                )
        self.path = path
        self._forced_codebook = codebook
        self._forced_order = bit_order
        self._shapes = dict(shapes or {})
        self._files: list[SafeFile] = []
        self.upscalers: list[Path] = []
        self.metadata: dict[str, str] = {}
        for file in _safetensors_files(path):
            opened = SafeFile(file, source)
            if path.is_dir() and all(key in opened for key in _UPSCALER_KEYS):
                self.upscalers.append(file)
                continue
            self._files.append(opened)
            self.metadata.update(opened.metadata)
        self.claim = _polar_config(path)
        self._layers: dict[str, _Layer] = {}
        self._plain: dict[str, tuple[SafeFile, str]] = {}
        self.cut: dict[str, _Layer] = {}
        self._index(partial)
        self._detections: dict[tuple[int, str], Detection] = {}
        self._bits_seen: set[tuple[int, str]] = set()

    @property
    def files(self) -> list[Path]:
        """The files of codes and of plain tensors (not the upscalers)."""
        return [file.path for file in self._files]

    def names(self) -> list[str]:
        """The model's names of the quantized tensors."""
        return list(self._layers)

    def plain_names(self) -> list[str]:
        """The names of the tensors that are stored as they are."""
        return list(self._plain)

    def __contains__(self, name: str) -> bool:
        return name in self._layers or name in self._plain

    # -- the index ---------------------------------------------------------------------------------------------------

    def _index(self, partial: bool) -> None:
        layers: dict[str, _Layer] = {}
        rest: list[tuple[SafeFile, str]] = []
        for file in self._files:
            _refuse_eoq(file)
            dotted_codes = {key[: -len(".codes")] for key in file if key.endswith(".codes")}
            for key in file:
                split = _split_key(key, dotted_codes, self._files)
                if split is None:
                    rest.append((file, key))
                    continue
                base, part, variant = split
                layer = layers.setdefault(base, _Layer(base, variant))
                if variant in ("V3", "V4") and part == "codes":
                    layer.variant = variant
                if part in layer.parts:
                    raise FormatError(
                        "one tensor lies in two files",
                        file=file.path,
                        tensor=key,
                        expected="each tensor once",
                        found=f"also in {layer.parts[part][0].path}",
                        fix="remove the file that does not belong to this checkpoint",
                    )
                layer.parts[part] = (file, key)
        for file, key in rest:
            if key in self._plain:
                raise FormatError(
                    "one tensor lies in two files",
                    file=file.path,
                    tensor=key,
                    expected="each tensor once",
                    found=f"also in {self._plain[key][0].path}",
                    fix="remove the file that does not belong to this checkpoint",
                )
            self._plain[key] = (file, key)
        if not layers:
            raise FormatError(
                "there are no quantized tensors: this is no HLWQ checkpoint",
                file=self.path,
                expected="tensors that end in __packed, __codes or .codes",
                found=f"{len(self._plain)} plain tensors in {len(self._files)} files",
                fix="choose the folder that holds polarquant/ (or hlwq/), or quantize this model: "
                "python -m hlwq_core quantize",
            )
        known = manifest.undotted_names()
        for layer in layers.values():
            name = _model_name(layer, known)
            try:
                self._check_layer(layer)
            except IncompleteError:
                if not partial:
                    raise
                self.cut[name] = layer
                continue
            if name in self._layers or name in self._plain:
                where = self._layers[name].parts["codes"][0] if name in self._layers else self._plain[name][0]
                raise FormatError(
                    "one weight is stored twice",
                    file=layer.parts["codes"][0].path,
                    tensor=name,
                    expected="each weight once",
                    found=f"also in {where.path}",
                    fix="remove the file that does not belong to this checkpoint",
                )
            self._layers[name] = layer

    def _check_layer(self, layer: _Layer) -> None:
        for part in ("codes", "norms") + (("meta",) if layer.variant == "V1" else ()):
            if part not in layer.parts:
                there = next(iter(layer.parts.values()))
                raise IncompleteError(
                    f"a layer has no {part}",
                    file=there[0].path,
                    tensor=layer.base,
                    expected=f"its {part} in one of {len(self._files)} files",
                    found=", ".join(key for _, key in layer.parts.values()),
                    fix="a chunk is missing: download the checkpoint again, or complete it with "
                    "python -m hlwq_core repair",
                )
        codes_file, codes_key = layer.parts["codes"]
        norms_file, norms_key = layer.parts["norms"]
        codes, norms = codes_file.entries[codes_key], norms_file.entries[norms_key]
        if codes.dtype not in ("U8", "I8"):
            raise FormatError(
                "codes of a wrong dtype",
                file=codes_file.path,
                tensor=codes_key,
                expected="U8 or I8",
                found=codes.dtype,
                fix="download this file again; if it is of another kind, this pack does not read it",
            )
        if norms.dtype not in ("F16", "F32", "BF16") or len(norms.shape) != 2 or 0 in norms.shape:
            raise FormatError(
                "norms of a wrong form",
                file=norms_file.path,
                tensor=norms_key,
                expected="F16 [out_features, blocks a row]",
                found=f"{norms.dtype} {list(norms.shape)}",
                fix="download this file again; if it is of another kind, this pack does not read it",
            )
        layer.rows, layer.num_blocks = norms.shape
        blocks = layer.rows * layer.num_blocks
        layer.bits, left = divmod(codes.nbytes * 8, BLOCK * blocks)
        layer.byte_codes = layer.bits == 8
        if left or not 1 <= layer.bits <= 8:
            raise FormatError(
                "codes and norms contradict each other: the codes are too short, or cut off",
                file=codes_file.path,
                tensor=codes_key,
                expected=f"16 · bits bytes for each of {blocks} blocks (5 bits: {80 * blocks})",
                found=f"{codes.nbytes} bytes",
                fix="download this file again and compare its size",
            )
        claimed = (self.claim or {}).get("bits")
        if layer.variant == "V3" and layer.byte_codes:
            layer.bits = claimed or 0  # 0: the codes tell, once they are read
        elif layer.variant == "V4" and "table" in layer.parts:
            file, key = layer.parts["table"]
            levels = math.prod(file.entries[key].shape)
            stored, layer.bits = layer.bits, levels.bit_length() - 1
            if levels == 1 << layer.bits and stored not in (8, layer.bits if layer.bits > 4 else 4):
                raise FormatError(
                    "codes and codebook contradict each other",
                    file=codes_file.path,
                    tensor=codes_key,
                    expected=f"codes for the {levels} levels of {key}",
                    found=f"codes of {stored} bits",
                    fix="download this file again: its tensors do not belong together",
                )
            if levels != 1 << layer.bits or not 1 <= layer.bits <= 8:
                raise FormatError(
                    "a codebook of a wrong size",
                    file=file.path,
                    tensor=key,
                    expected="2, 4, 8 … 256 levels",
                    found=levels,
                    fix="download this file again",
                )
        if layer.bits not in BITS and layer.variant != "V4" and layer.bits:
            raise UnsupportedError(
                "a number of bits that HLWQ does not have",
                file=codes_file.path,
                tensor=codes_key,
                expected=", ".join(map(str, BITS)),
                found=layer.bits,
                fix="download this file again; if it is of another kind, this pack does not read it",
            )
        if claimed is not None and layer.variant != "V4" and layer.bits != claimed:
            raise FormatError(
                "the codes have other bits than polar_config.json claims",
                file=codes_file.path,
                tensor=codes_key,
                expected=f"{claimed} bits",
                found=f"{layer.bits} bits",
                fix="download the checkpoint again: these files do not belong together",
            )

    # -- names and shapes --------------------------------------------------------------------------------------------

    def resolve_names(self, expected: Iterable[str]) -> None:
        """Give V1 tensors the names that a model expects: undoing `__` for `.` is ambiguous, the reverse is not."""
        wanted = {name.replace(".", "__"): name for name in expected}

        def named(layers: dict[str, _Layer]) -> dict[str, _Layer]:
            return {
                (wanted.get(_undouble(layer.base), name) if layer.variant == "V1" else name): layer
                for name, layer in layers.items()
            }

        self._layers, self.cut = named(self._layers), named(self.cut)

    def set_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Tell the model's shapes, for layers whose files do not tell how wide a padded row is."""
        self._shapes.update(shapes)

    def _layer(self, name: str) -> _Layer:
        try:
            return self._layers[name]
        except KeyError:
            raise InputError(
                "the checkpoint has no quantized tensor of this name",
                file=self.path,
                tensor=name,
                expected="one of names()",
                found=f"{len(self._layers)} others",
                fix="names() lists them; plain_names() those that are stored as they are",
            ) from None

    def _meta(self, layer: _Layer) -> list[int]:
        if layer.meta is None:
            layer.meta = self._read_meta(layer) if "meta" in layer.parts else []
        return layer.meta

    @staticmethod
    def _read_meta(layer: _Layer) -> list[int]:
        file, key = layer.parts["meta"]
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
        expected = [layer.rows, layer.num_blocks, BLOCK, layer.rows * layer.num_blocks * BLOCK]
        if meta[:4] != expected:
            raise FormatError(
                "meta contradicts the norms",
                file=file.path,
                tensor=key,
                expected=f"{expected} (out, blocks, block size, codes)",
                found=meta[:4],
                fix="download this file again",
            )
        return meta

    def _in_features(self, name: str, layer: _Layer) -> int:
        padded = layer.num_blocks * BLOCK
        meta = self._meta(layer)
        candidates = [
            self._shapes.get(name),
            manifest.shape(name),
            (layer.rows, meta[4]) if len(meta) == 5 else None,
        ]
        for shape in candidates:
            if (
                shape is not None
                and len(shape) == 2
                and shape[0] == layer.rows
                and -(-shape[1] // BLOCK) == layer.num_blocks
            ):
                return shape[1]
        if len(meta) == 5:
            file, key = layer.parts["meta"]
            raise FormatError(
                "meta contradicts the norms",
                file=file.path,
                tensor=key,
                expected=f"an in_features that pads to {padded}",
                found=meta[4],
                fix="download this file again",
            )
        return padded

    # -- reading -----------------------------------------------------------------------------------------------------

    def _codes(self, layer: _Layer) -> torch.Tensor:
        file, key = layer.parts["codes"]
        codes = file.tensor(key)
        return (codes.view(torch.uint8) if codes.dtype == torch.int8 else codes).reshape(layer.rows, -1)

    def _norms(self, layer: _Layer) -> torch.Tensor:
        file, key = layer.parts["norms"]
        return file.tensor(key).to(torch.float16)

    def _reading(self, layer: _Layer) -> tuple[str, str]:
        """Packing and codebook of a layer."""
        if not layer.bits:
            self._find_bits()
        packings = _packings(layer)
        self._check_bits(layer.bits, packings)
        if layer.variant == "V4" and "table" in layer.parts:
            file, key = layer.parts["table"]
            table = file.tensor(key).reshape(-1).float()
            return packings[0], register_stored(table if key.endswith("ct_scaled") else table / SQRT_BLOCK)
        found = self._detection(layer.bits, packings)
        codebook = self._forced_codebook or found.codebook
        packing = self._forced_order if self._forced_order in packings else found.packing
        return packing, codebook

    def _sample(self, bits: int, packings: tuple[str, ...]) -> list[_Layer]:
        """Some layers of these bits and packings."""
        alike = [layer for layer in self._layers.values() if layer.bits == bits and _packings(layer) == packings]
        # The largest layers: their rows are the least like special cases.
        alike.sort(key=lambda layer: layer.rows * layer.num_blocks, reverse=True)
        return alike[:: max(1, len(alike) // SAMPLE_LAYERS)][:SAMPLE_LAYERS]

    def _codes_of(self, layers: list[_Layer], bits: int, packing: str) -> torch.Tensor:
        """Codes of a sample of the blocks of some layers, uint8, flat."""
        samples = (sample_codes(*self._sample_of(layer), bits, packing) for layer in layers)
        return torch.cat([torch.empty(0, dtype=torch.uint8), *(s.reshape(-1) for s in samples if s is not None)])

    def _find_bits(self) -> None:
        """The bits of codes that lie one a byte, with no claim and no table that tells them (V3): found in the codes."""
        bits = bits_in_use(self._codes_of(self._sample(0, ("byte",)), 8, "byte")) or 5
        for layer in self._layers.values():
            layer.bits = layer.bits or bits

    def _check_bits(self, bits: int, packings: tuple[str, ...]) -> None:
        """Refuse codes that use less of their table than half, or more than there is (once for layers that are alike)."""
        if packings[0] not in ("byte", "nibble") or (bits, packings[0]) in self._bits_seen:
            return
        layers = self._sample(bits, packings)
        found = bits_in_use(self._codes_of(layers, bits, packings[0]))
        # V4 brings its table, of whatever size; the others' tables are ours.
        if found is not None and (found != bits or bits not in BITS and layers[0].variant != "V4"):
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
        if key not in self._detections:
            order = self.metadata.get("hlwq.bit_order")
            version = self.metadata.get("hlwq.codebook")
            sample = [self._sample_of(layer) for layer in self._sample(bits, packings)]
            self._detections[key] = detect(
                sample,
                bits,
                (order,) if order in packings else packings,
                (version,) if version in VERSIONS else VERSIONS,
            )
        return self._detections[key]

    def _sample_of(self, layer: _Layer) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and norms of the rows that the detection looks at; of all rows where those are zero."""
        rows = sample_rows(layer.rows, layer.num_blocks)
        codes, norms = (file.rows(key, rows, layer.rows) for file, key in (layer.parts["codes"], layer.parts["norms"]))
        if not bool((norms > 0).any()):
            return self._codes(layer), self._norms(layer)
        return codes.view(torch.uint8), norms.to(torch.float16)

    def info(self, name: str) -> LayerInfo:
        """What is known of a quantized tensor. Reads its meta, and once a sample of the codes for the detection."""
        layer = self._layer(name)
        packing, codebook = self._reading(layer)
        return LayerInfo(
            name=name,
            shape=(layer.rows, self._in_features(name, layer)),
            bits=layer.bits,
            variant=layer.variant,
            packing=packing,
            codebook=codebook,
            num_blocks=layer.num_blocks,
            nbytes=sum(layer.parts[part][0].entries[layer.parts[part][1]].nbytes for part in ("codes", "norms")),
            files=tuple(dict.fromkeys(file.path for file, _ in layer.parts.values())),
        )

    def packed(self, name: str) -> PackedLayer:
        """A quantized tensor as it lies in the files; nothing is decoded or copied."""
        layer = self._layer(name)
        packing, codebook = self._reading(layer)
        return PackedLayer(
            codes=self._codes(layer),
            norms=self._norms(layer),
            bits=layer.bits,
            packing=packing,
            codebook=codebook,
            shape=(layer.rows, self._in_features(name, layer)),
        )

    def check_norms(self, name: str) -> None:
        """Refuse a layer whose norms are not finite. Reads the norms (2.4 % of a layer's bytes).

        Raises:
            FormatError: a norm is NaN or infinite.
        """
        layer = self._layer(name)
        norms = self._norms(layer)
        # A NaN comes out of both, at a quarter of the time that asking each norm takes.
        if not all(map(math.isfinite, map(float, torch.aminmax(norms)))):
            file, key = layer.parts["norms"]
            finite = torch.isfinite(norms)
            raise FormatError(
                "norms are not finite: the layer would decode to NaN",
                file=file.path,
                tensor=key,
                expected="finite norms",
                found=f"{int((~finite).sum())} of {finite.numel()} NaN or infinite",
                fix="download this file again, or replace the layer with python -m hlwq_core repair",
            )

    def check_data(self, name: str) -> None:
        """Refuse a layer whose norms are not finite, or whose codes its codebook does not have.

        Reads the norms, and the codes where their storage has room for more than the codebook (V3, some of V4).

        Raises:
            FormatError: it would decode to NaN, or to nothing that was ever meant.
        """
        self.check_norms(name)
        self._check_codes(name, self._codes(self._layer(name)))

    def _check_codes(self, name: str, codes: torch.Tensor) -> None:
        layer = self._layer(name)
        packing, _ = self._reading(layer)
        room = {"byte": 8, "nibble": 4}.get(packing, layer.bits)
        if layer.bits >= room or not codes.numel():
            return
        largest = int(codes.max()) if packing == "byte" else int(max((codes & 0x0F).max(), (codes >> 4).max()))
        if largest >= 1 << layer.bits:
            file, key = layer.parts["codes"]
            raise FormatError(
                "a code that the codebook does not have",
                file=file.path,
                tensor=key,
                expected=f"codes up to {(1 << layer.bits) - 1} ({layer.bits} bits)",
                found=largest,
                fix="download this file again, or replace the layer with python -m hlwq_core repair",
            )

    def plain(self, name: str) -> torch.Tensor:
        """A tensor that is stored as it is, a view of the mapped file."""
        file, key = self._plain[name]
        return file.tensor(key)

    def plain_info(self, name: str) -> tuple[tuple[int, ...], torch.dtype, Path]:
        """Shape, dtype and file of a plain tensor."""
        file, key = self._plain[name]
        entry = file.entries[key]
        return entry.shape, DTYPES[entry.dtype][0], file.path

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors, quantized ones first, by the model's names."""
        quantized: dict[str, tuple[int, ...]] = {name: self.info(name).shape for name in self.names()}
        return quantized | {name: self.plain_info(name)[0] for name in self.plain_names()}

    def decode(
        self,
        name: str,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        rows: slice = slice(None),
    ) -> torch.Tensor:
        """Decode a quantized tensor, or a range of its rows alone.

        Args:
            name: one of `names()`.
            dtype: of the result; the arithmetic is float32.
            device: where to decode; the packed rows travel there.
            rows: a range of output rows, with step 1.

        Returns:
            `[rows, in_features]`.
        """
        if rows.step not in (None, 1):
            raise InputError(
                "only whole ranges of rows can be decoded",
                tensor=name,
                expected="a step of 1",
                found=rows,
                fix="decode the range and take every n-th row of it",
            )
        packed = self.packed(name)
        self._check_codes(name, packed.codes[rows])
        return operators.decode(
            packed.codes[rows].to(device),
            packed.norms[rows].to(device),
            packed.table(device),
            packed.bits,
            packed.packing,
            packed.shape[1],
            dtype,
        )

    def _assumed(self) -> list[str]:
        """What neither data nor metadata told, nor the user: then the published files' way is taken."""
        unsure = [found for found in self._detections.values() if not found.sure]
        told_order = self._forced_order or self.metadata.get("hlwq.bit_order")
        told_codebook = self._forced_codebook or self.metadata.get("hlwq.codebook")
        order = any(found.packing in ("msb", "lsb") for found in unsure) and not told_order
        codebook = bool(unsure) and not told_codebook
        return [what for what, is_assumed in (("bit order", order), ("codebook", codebook)) if is_assumed]

    # -- the report --------------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """What the checkpoint is, for people and programs: JSON-ready."""
        infos = [self.info(name) for name in self.names()]
        weights = sum(info.shape[0] * info.shape[1] for info in infos)
        coded = sum(info.nbytes for info in infos)
        plain = sum(file.entries[key].nbytes for file, key in self._plain.values())

        def each(attribute: str) -> dict[str, int]:
            counts: dict[str, int] = {}
            for info in infos:
                key = str(getattr(info, attribute))
                counts[key] = counts.get(key, 0) + 1
            return counts

        return {
            "path": str(self.path),
            "files": len(self._files),
            "quantized": len(infos),
            "plain": len(self._plain),
            "variants": each("variant"),
            "bits": each("bits"),
            "packings": each("packing"),
            "codebooks": each("codebook"),
            "detected": [
                {
                    "bits": bits,
                    "packing": d.packing,
                    "codebook": d.codebook,
                    "rms": round(d.rms, 5),
                    "sure": d.sure,
                }
                for (bits, _), d in self._detections.items()
            ],
            "assumed": self._assumed(),
            "weights": weights,
            "bytes_quantized": coded,
            "bytes_plain": plain,
            "bits_a_weight": round(coded * 8 / weights, 4),
            "upscalers": [path.name for path in self.upscalers],
        }


def _safetensors_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(
            "no such file or folder",
            file=path,
            expected="a checkpoint: a folder or a file",
            found="nothing there",
            fix="correct the path",
        )
    files = sorted(
        file
        for file in path.rglob("*.safetensors")
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        other = next((file for file in path.rglob("*.gguf")), None)
        if other is not None:
            raise UnsupportedError(
                "this folder holds a GGUF file, not an HLWQ checkpoint",
                file=other,
                expected="safetensors files with HLWQ codes",
                found="GGUF",
                fix="load it with the ComfyUI-GGUF nodes",
            )
        raise FormatError(
            "there are no safetensors files in this folder",
            file=path,
            expected="polarquant/codes/*.safetensors and polarquant/bf16/*.safetensors",
            found="none",
            fix="download the checkpoint: python -m hlwq_core download",
        )
    return files


def _polar_config(path: Path) -> dict[str, Any] | None:
    """The author's polar_config.json (of the folder, or beside the file), with the `bits` that its format claims."""
    folder = path if path.is_dir() else path.parent
    for file in (folder / inside / "polar_config.json" for inside in ("", "polarquant", "hlwq")):
        if file.is_file():
            try:
                config = json.loads(file.read_text(encoding="utf-8"))
                name = str(config.get("format", ""))
            except (ValueError, AttributeError) as error:
                raise FormatError(
                    "polar_config.json is no JSON object",
                    file=file,
                    expected="a JSON object",
                    found=error,
                    fix="download this file again",
                ) from error
            if config.get("block_size", BLOCK) != BLOCK:
                raise UnsupportedError(
                    "blocks of another size",
                    file=file,
                    expected=BLOCK,
                    found=config.get("block_size"),
                    fix="this pack reads blocks of 128 only: look for such a version of the model",
                )
            prefix, _, bits = name.rpartition("-q")
            if prefix in ("hlwq", "polarquant") and bits.isdigit():
                config.setdefault("bits", int(bits))
            if config.get("bits", 5) not in BITS:
                raise UnsupportedError(
                    "a number of bits that HLWQ does not have",
                    file=file,
                    expected=", ".join(map(str, BITS)),
                    found=config["bits"],
                    fix="download the checkpoint again; if it is of another kind, this pack does not read it",
                )
            return config
    return None


def _refuse_eoq(file: SafeFile) -> None:
    for key in file:
        if key.endswith(".scales") and key[: -len("scales")] + "codes" in file:
            raise UnsupportedError(
                "this is an EOQ checkpoint (.codes and .scales), which this pack does not read",
                file=file.path,
                tensor=key,
                expected="HLWQ: codes with norms",
                found="codes with scales",
                fix="get the HLWQ (PolarQuant) version of the model",
            )


def _split_key(key: str, dotted_codes: set[str], files: list[SafeFile]) -> tuple[str, str, str] | None:
    """Base name, part and variant of a key that belongs to a quantized tensor; None for a plain tensor."""
    base, double, suffix = key.rpartition("__")
    if double and suffix in _SUFFIXES:
        if suffix == "codes":
            return base, "codes", "V3"
        return base, _SUFFIXES[suffix], "V2" if "." in base else "V1"
    base, dot, suffix = key.rpartition(".")
    if dot and suffix in ("codes", "norms", "ct_scaled", "ct"):
        if base in dotted_codes or any(base + ".codes" in file for file in files):
            return base, "table" if suffix.startswith("ct") else suffix, "V4"
    return None


def _undouble(base: str) -> str:
    """Some writers append `weight` to names that already end in it."""
    for tail in ("__weight", ".weight"):
        if base.endswith(tail * 2):
            return base[: -len(tail)]
    return base


def _model_name(layer: _Layer, known: Mapping[str, str]) -> str:
    base = _undouble(layer.base)
    if layer.variant == "V1":
        return known.get(base, base.replace("__", "."))
    if layer.variant in ("V3", "V4"):
        base = known.get(base, base.replace("__", ".") if "." not in base else base)
        named = base.rpartition(".")[2] == "weight" or manifest.shape(base) is not None
        return base if named else f"{base}.weight"
    return base


def _packings(layer: _Layer) -> tuple[str, ...]:
    if layer.byte_codes:
        return ("byte",)
    if layer.variant == "V4":
        return ("nibble",) if layer.bits <= 4 else ("lsb", "msb")
    return ("msb", "lsb")


def layer_bytes(shape: tuple[int, int], bits: int) -> int:
    """Bytes of codes and norms of a weight, as V1 stores it."""
    num_blocks = -(-shape[1] // BLOCK)
    return shape[0] * (row_bytes(num_blocks, bits, "msb") + 2 * num_blocks)
