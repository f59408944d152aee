"""Opening an HLWQ checkpoint: which tensors there are, where their bytes lie, and decoding any range of them.

A checkpoint is a folder (published layout, or any other arrangement of safetensors files) or a single file. It is
recognised by its tensors' names (`format.variants`), never by file names.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from .. import backends
from ..errors import FormatError, InputError, UnsupportedError
from ..format import variants
from ..format.bounded import is_file
from ..format.codebook import BLOCK, VERSIONS
from ..format.packed import LayerInfo, PackedLayer
from ..format.safefile import DTYPES, Mapper, SafeFile
from ..models import families
from .block_means import Outermost, outermost
from .claim import read_claim
from .find import files_of, is_folder, others_in
from .index import Layer, build
from .reading import Reading, rows_together

# The tensors that only latent upscalers have (ComfyUI recognises them by the same names).
_UPSCALER_KEYS = ("initial_conv.weight", "post_upsample_res_blocks.0.conv1.weight")


def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    codebook: str | None = None,
    bit_order: str | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    partial: bool = False,
    source: Mapper | None = None,
    mapped: bool = True,
) -> Checkpoint:
    """Open a checkpoint; headers are read, no weight is.

    Args:
        path: a folder or a `.safetensors` file.
        codebook: `infinite` or `finite` to insist on a version; None finds it in the data.
        bit_order: `msb` or `lsb` to insist; None finds it in the data.
        shapes: the model's shapes by name, for files that do not tell a padded layer's width.
        partial: put layers that lack codes, norms or meta into `cut` instead of raising: for inspecting and repairing.
        source: who maps the files, for a program that has its own way to bring mapped bytes to a device.
        mapped: False to read tensors into memory of their own instead: then a file that is changed meanwhile is an error.

    Raises:
        InputError: no such path, or an unknown choice.
        UnsupportedError: a known other format, named as such.
        FormatError: a file is corrupt, or its tensors contradict each other.
        IncompleteError: a layer's codes or norms are in no file.
    """
    return Checkpoint(
        Path(path),
        codebook=codebook,
        bit_order=bit_order,
        shapes=shapes,
        partial=partial,
        source=source,
        mapped=mapped,
    )


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
        source: Mapper | None = None,
        mapped: bool = True,
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
        self._shapes = dict(shapes or {})
        self._files: list[SafeFile] = []
        self.upscalers: list[Path] = []
        self.metadata: dict[str, str] = {}
        for file in _safetensors_files(path):
            opened = SafeFile(file, source, mapped)
            if is_folder(path) and all(key in opened for key in _UPSCALER_KEYS):
                self.upscalers.append(file)
                continue
            self._files.append(opened)
            self.metadata.update(opened.metadata)
        self.claim = read_claim(path)
        self._index = build(path, self._files, self.claim, partial)
        self._reading = Reading(self._index.layers.values(), self.metadata, codebook, bit_order)

    @property
    def files(self) -> list[Path]:
        """The files of codes and of plain tensors (not the upscalers)."""
        return [file.path for file in self._files]

    @property
    def cut(self) -> Mapping[str, Layer]:
        """Quantized tensors that lack a part, of a checkpoint that was opened with `partial`."""
        return self._index.cut

    def names(self) -> list[str]:
        """The model's names of the quantized tensors."""
        return list(self._index.layers)

    def plain_names(self) -> list[str]:
        """The names of the tensors that are stored as they are."""
        return list(self._index.plain)

    def __contains__(self, name: str) -> bool:
        return name in self._index.layers or name in self._index.plain

    # -- names and shapes --------------------------------------------------------------------------------------------

    def resolve_names(self, expected: Iterable[str]) -> None:
        """Give V1 tensors the names that a model expects: undoing `__` for `.` is ambiguous, the reverse is not."""
        self._index.rename({variants.undotted(name): name for name in expected})

    def set_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Tell the model's shapes, for layers whose files do not tell how wide a padded row is."""
        self._shapes.update(shapes)

    def _layer(self, name: str) -> Layer:
        try:
            return self._index.layers[name]
        except KeyError:
            raise InputError(
                "the checkpoint has no quantized tensor of this name",
                file=self.path,
                tensor=name,
                expected="one of names()",
                found=f"{len(self._index.layers)} others",
                fix="names() lists them; plain_names() those that are stored as they are",
            ) from None

    def _in_features(self, name: str, layer: Layer) -> int:
        """How wide a row is: what the layer's file tells; else what the model tells, where that pads to it."""
        columns = layer.columns()
        if columns is not None:
            return columns
        for shape in (self._shapes.get(name), families.shape(name)):
            if shape is not None and len(shape) == 2 and shape[0] == layer.rows:
                if -(-shape[1] // BLOCK) == layer.num_blocks:
                    return shape[1]
        return layer.num_blocks * BLOCK

    # -- reading -----------------------------------------------------------------------------------------------------

    def info(self, name: str) -> LayerInfo:
        """What is known of a quantized tensor. Reads its meta, and once a sample of the codes for the detection."""
        layer = self._layer(name)
        packing, codebook = self._reading.of(layer)
        return LayerInfo(
            name=name,
            shape=(layer.rows, self._in_features(name, layer)),
            bits=layer.bits,
            variant=layer.variant.name,
            packing=packing,
            codebook=codebook,
            num_blocks=layer.num_blocks,
            nbytes=sum(layer.parts[part].entry.nbytes for part in ("codes", "norms")),
            files=tuple(dict.fromkeys(file.path for file, _ in layer.parts.values())),
        )

    def packed(self, name: str) -> PackedLayer:
        """A quantized tensor as it lies in the files; nothing is decoded or copied."""
        layer = self._layer(name)
        packing, codebook = self._reading.of(layer)
        return PackedLayer(
            codes=layer.codes(),
            norms=layer.norms(),
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
        norms = layer.norms()
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
        self._check_codes(name, self._layer(name).codes())

    def _check_codes(self, name: str, codes: torch.Tensor) -> None:
        layer = self._layer(name)
        packing, _ = self._reading.of(layer)
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

    def outermost(self, name: str) -> Outermost | None:
        """How often codes are the outermost ones, in some rows of a layer that lie together; None where they are zero."""
        layer = self._layer(name)
        packing, _ = self._reading.of(layer)
        codes, norms = rows_together(layer)
        return outermost(codes, norms, layer.bits, packing)

    def plain(self, name: str) -> torch.Tensor:
        """A tensor that is stored as it is, a view of the mapped file."""
        file, key = self._index.plain[name]
        return file.tensor(key)

    def plain_info(self, name: str) -> tuple[tuple[int, ...], torch.dtype, Path]:
        """Shape, dtype and file of a plain tensor."""
        file, key = self._index.plain[name]
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
        packed = self.packed(name).rows(rows)
        self._check_codes(name, packed.codes)
        return backends.decode(packed.to(device), dtype)

    # -- the report --------------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """What the checkpoint is, for people and programs: JSON-ready."""
        infos = [self.info(name) for name in self.names()]
        weights = sum(info.shape[0] * info.shape[1] for info in infos)
        coded = sum(info.nbytes for info in infos)
        plain = sum(stored.entry.nbytes for stored in self._index.plain.values())

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
            "plain": len(self._index.plain),
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
                for (bits, _), d in self._reading.detections.items()
            ],
            "assumed": self._reading.assumed(),
            "weights": weights,
            "bytes_quantized": coded,
            "bytes_plain": plain,
            "bits_a_weight": round(coded * 8 / weights, 4),
            "upscalers": [path.name for path in self.upscalers],
        }


def _safetensors_files(path: Path) -> list[Path]:
    if is_file(path):
        return [path]
    if not is_folder(path):
        raise InputError(
            "no such file or folder",
            file=path,
            expected="a checkpoint: a folder or a file",
            found="nothing there",
            fix="correct the path",
        )
    files = files_of(path)
    if not files:
        other = others_in(path)
        raise (UnsupportedError if "GGUF" in other else FormatError)(
            "there are no safetensors files in this folder",
            file=path,
            expected="polarquant/codes/*.safetensors and polarquant/bf16/*.safetensors",
            found=other,
            fix="load it with the ComfyUI-GGUF nodes"
            if "GGUF" in other
            else "download the checkpoint: python -m hlwq_core download",
        )
    return files
