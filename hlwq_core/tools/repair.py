"""Completing a checkpoint: what is missing is made from the original, into new files; nothing that exists is touched."""

from __future__ import annotations

import collections
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.checkpoint import Checkpoint, open_checkpoint
from ..checkpoints.completeness import whole
from ..checkpoints.dense import DenseModel, open_dense
from ..checkpoints.index import Layer
from ..codec.codec import nearest, to_blocks
from ..codec.layers import encode_layer
from ..errors import FormatError, InputError, UnsupportedError
from ..format.bounded import is_file
from ..format.codebook import BLOCK, SQRT_BLOCK, VERSIONS, centroids
from ..format.hadamard import rotate
from ..format.packing import pack, unpack
from ..format.record import REPAIRED, read_record
from ..format.safefile import DTYPES
from ..format.sizes import BITS
from ..format.variants import V1, VARIANTS, Announced, base_of, layer_entries, metas_first
from ..format.writer import Producer, write_safetensors
from ..models import families
from ..models.recipes import load_recipe, recipe_names
from .alone import alone
from .device import choose_device
from .job import Progress, Tally

_WRITTEN = [variant.name for variant in VARIANTS if variant.written]


@dataclass
class Repaired:
    """What was added (names of tensors, and the new files), and what the model needs and the original lacks as well."""

    path: str
    quantized: list[str]
    kept: list[str]
    files: list[str]
    still_missing: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self, original: str) -> str:
        """The result for people; `original` is how they call what it was completed from."""
        lines = [f"{self.path}: nothing was added"]
        if self.files:
            lines = [
                f"{self.path}: {len(self.quantized)} layers quantized, {len(self.kept)} other tensors copied, into"
            ]
            lines += [f"  {file}" for file in self.files]
        if self.still_missing:
            lines += [f"  still missing: {name}" for name in self.still_missing[:10]]
            lines.append(
                f"{len(self.still_missing)} tensors are neither here nor in {original}: repair from the whole original"
            )
        elif self.files:
            lines.append(f"next: python -m hlwq_core verify {self.path} --against {original}")
        else:
            lines = [f"{self.path}: nothing is missing"]
        return "\n".join(lines)


def repair(
    path: str | os.PathLike[str],
    original: str | os.PathLike[str],
    *,
    rules: str | os.PathLike[str] | None = None,
    norms: str | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Repaired:
    """Complete a checkpoint's folder.

    Bits, codebook version and bit order are those of the layers that are there.

    Args:
        path: the checkpoint's folder.
        original: the dense model that it was made from.
        rules: recipe that says which of the missing are quantized; None: a layer whose fellows in other blocks are
            quantized is, and otherwise what the checkpoint's own recipe says, or its family's (of an unknown model LTX-2.3's,
            as which codes without notes are published).
        norms: `author` or `search`; None is what the checkpoint has.
        device: where to encode.
        progress: called with (done, total, text) in bytes of the original; may raise to stop.

    Raises:
        InputError: a single file, an original of another model, or another run writes to the folder.
    """
    path = Path(path)
    if is_file(path):
        raise InputError(
            "only folders can be completed: a single file would have to be written anew",
            file=path,
            fix="quantize the original again: python -m hlwq_core quantize ORIGINAL DST --layout single",
        )
    source = open_dense(original)
    with alone(path):
        shapes = {name: entry.shape for name, (_, entry) in source.entries.items()}
        checkpoint = open_checkpoint(path, shapes=shapes, partial=True, mapped=False)
        record = read_record(path)
        checkpoint.resolve_names(source.entries)
        _check_same_model(checkpoint, source)
        missing = [name for name in source.entries if name not in checkpoint]
        plan = _plan(checkpoint, source, [name for name in missing if name not in checkpoint.cut], rules)
        kept = [name for name in missing if name not in plan and name not in checkpoint.cut]
        job = _Job(
            checkpoint,
            source,
            norms or _noted_norms(checkpoint),
            choose_device(device),
            Tally(progress, sum(source.entries[name][1].nbytes for name in missing)),
            record,
        )
        files = []
        if plan or checkpoint.cut:
            files.append(job.write_codes(plan))
        if kept:
            files.append(job.write_kept(kept))
        still_missing = [name for name in whole(checkpoint).missing if name not in shapes]
        return Repaired(str(path), [*plan, *checkpoint.cut], kept, [str(file) for file in files], still_missing)


def _check_same_model(checkpoint: Checkpoint, source: DenseModel) -> None:
    for name, layer in checkpoint.cut.items():
        if not layer.variant.written:
            there = next(iter(layer.parts.values())).file.path
            raise UnsupportedError(
                f"a layer of variant {layer.variant.name} is cut in two, and can only be completed in {' and '.join(_WRITTEN)}",
                file=there,
                tensor=name,
                fix="quantize the original anew: python -m hlwq_core quantize",
            )
        if name not in source.entries or len(source.entries[name][1].shape) != 2:
            raise InputError(
                "the original is another model",
                file=source.path,
                tensor=name,
                expected="a matrix of this name",
                fix="name the dense checkpoint that this one was made from",
            )
        _check_parts(layer, source.entries[name][1].shape)
    for name in checkpoint.names():
        found = source.entries.get(name)
        shape = checkpoint.info(name).shape
        if found is None or tuple(found[1].shape) != tuple(shape):
            raise InputError(
                "the original is another model",
                file=source.path,
                tensor=name,
                expected=list(shape),
                found=list(found[1].shape) if found else "no such tensor",
                fix="name the dense checkpoint that this one was made from",
            )


def _check_parts(layer: Layer, shape: tuple[int, ...]) -> None:
    """Refuse parts of a cut layer that are not of the weight that the original has.

    Raises:
        FormatError: the other parts cannot be made to fit them.
    """
    rows, blocks = shape[0], -(-shape[1] // BLOCK)
    layer.rows, layer.num_blocks = rows, blocks
    layer.columns()
    for part, stored in layer.parts.items():
        entry, bits = stored.entry, 0
        if part == "codes" and rows * blocks:
            bits, left = divmod(entry.nbytes * 8, rows * blocks * BLOCK)
            fits, expected = (
                entry.dtype in ("U8", "I8") and not left and bits in BITS,
                f"codes of {rows * blocks} blocks",
            )
        elif part == "norms":
            fits = entry.shape == (rows, blocks) and entry.dtype in ("F16", "F32", "BF16")
            fits, expected = fits and bool(torch.isfinite(stored.tensor()).all()), f"finite norms {[rows, blocks]}"
        else:
            continue
        if not fits:
            raise FormatError(
                f"a layer that is cut in two has {part} of another shape than the original's weight",
                file=stored.file.path,
                tensor=stored.key,
                expected=expected,
                found=f"{entry.dtype} {list(entry.shape)}",
                fix="remove this file and repair again, or name the dense checkpoint that this one was made from",
            )


def _plan(
    checkpoint: Checkpoint, source: DenseModel, missing: list[str], rules: str | os.PathLike[str] | None
) -> dict[str, int]:
    default = _usual_bits(checkpoint)
    described = [(name, source.entries[name][1].dtype, source.entries[name][1].shape) for name in missing]
    if rules is not None:
        return load_recipe(rules).plan(described, default)
    alike = {_without_numbers(name): checkpoint.info(name).bits for name in checkpoint.names()}
    plain = {_without_numbers(name) for name in checkpoint.plain_names()}
    noted = checkpoint.metadata.get("hlwq.recipe", "")
    recipe = load_recipe(
        noted if noted in recipe_names() else families.recipe_of(source.entries, families.DEFAULT.recipe)
    )
    recipe.prepare(missing)
    plan = {}
    for name, dtype, shape in described:
        bits = alike.get(_without_numbers(name))
        if bits is None and _without_numbers(name) not in plain:
            bits = recipe.bits_for(name, dtype, shape, default)
        if bits is not None and len(shape) == 2:
            plan[name] = bits
    return plan


def _noted_norms(checkpoint: Checkpoint) -> str:
    noted = checkpoint.metadata.get("hlwq.norms", "")
    return noted if noted in ("author", "search") else "author"


def _usual_bits(checkpoint: Checkpoint) -> int:
    counts = collections.Counter(checkpoint.info(name).bits for name in checkpoint.names())
    return counts.most_common(1)[0][0] if counts else 5


def _without_numbers(name: str) -> str:
    return ".".join("#" if part.isdigit() else part for part in name.split("."))


@dataclass
class _Job:
    checkpoint: Checkpoint
    source: DenseModel
    norms: str
    device: torch.device
    tally: Tally
    record: Mapping[str, object] = field(default_factory=dict)

    def _reading(self, bits: int) -> tuple[str, str]:
        """Bit order and codebook of the checkpoint's layers of these bits: one reading is found for all of them."""
        order, version = "msb", "infinite"
        for name in self.checkpoint.names():
            info = self.checkpoint.info(name)
            if info.codebook in VERSIONS:
                version = info.codebook
            if info.bits == bits and info.packing in ("msb", "lsb") and info.variant in _WRITTEN:
                return info.packing, info.codebook
        return order, version

    def _replaced(self) -> dict[str, str]:
        """A note, for verify, of the files that the record of checksums names and that are lost."""
        folder = self.checkpoint.path
        return {REPAIRED + name: "1" for name in self.record if not is_file(folder / name)}

    def write_codes(self, plan: dict[str, int]) -> Path:
        layers = [*self.checkpoint.names()[:1]]
        if layers:
            info = self.checkpoint.info(layers[0])
            folder, dotted = info.files[0].parent, info.variant != V1.name
        else:
            folder, dotted = self.checkpoint.files[0].parent, False
        path = _new_file(folder, "codes")
        order, version = self._reading(next(iter(plan.values()), _usual_bits(self.checkpoint)))
        entries: list[Announced] = []
        for name in self.checkpoint.cut:
            entries += self._rest_of_layer(name)
        for name, bits in plan.items():
            entries += self._layer(name, bits, dotted)
        metadata = {"format": "pt", "hlwq.codebook": version, "hlwq.bit_order": order, "hlwq.norms": self.norms}
        metadata |= self._replaced()
        write_safetensors(path, metas_first(entries), metadata)
        return path

    def _layer(self, name: str, bits: int, dotted: bool) -> list[Announced]:
        made: dict[str, torch.Tensor] = {}
        order, version = self._reading(bits)
        found = self.source.entries[name]

        def packed() -> torch.Tensor:
            made_now = encode_layer(
                self.source.tensor(name),
                bits,
                self.norms,
                version,
                self.device,
                name=name,
                file=found[0].path,
                told=lambda nbytes: self.tally.add(nbytes, name),
            )
            codes, made["norms"] = made_now.codes, made_now.norms
            if order == "lsb":
                codes = pack(unpack(codes, bits, "msb"), bits, "lsb")
            return codes.reshape(-1)

        rows, columns = found[1].shape
        entries = layer_entries(name, (rows, columns), bits, packed, lambda: made.pop("norms"), dotted=dotted)
        return list(entries.values())

    def _rest_of_layer(self, name: str) -> list[Announced]:
        """The parts that a cut layer lacks, made to fit those that it has."""
        parts = self.checkpoint.cut[name].parts
        entry = self.source.entries[name][1]
        rows, columns = entry.shape
        blocks = -(-columns // BLOCK)
        bits = _usual_bits(self.checkpoint)
        if "codes" in parts:
            bits = parts["codes"].entry.nbytes * 8 // (rows * blocks * BLOCK)
        order, version = self._reading(bits)

        def rotated() -> torch.Tensor:
            return rotate(to_blocks(self.source.tensor(name)))

        def norms() -> torch.Tensor:
            found = rotated()
            self.tally.add(entry.nbytes if "codes" in parts else 0, name)
            if "codes" not in parts or self.norms == "author":
                return found.norm(dim=-1).half()
            codes = unpack(parts["codes"].tensor().reshape(rows, -1), bits, order)
            levels = centroids(bits, version)[codes.reshape(found.shape).long()]
            return ((found * levels).sum(-1) / levels.square().sum(-1) * SQRT_BLOCK).half()

        def packed() -> torch.Tensor:
            self.tally.add(entry.nbytes, name)
            there = parts["norms"].tensor().float() if "norms" in parts else norms().float()
            found = rotated() * SQRT_BLOCK / there.clamp(min=1e-10)[..., None]
            return pack(nearest(found, bits, version).reshape(rows, -1), bits, order).reshape(-1)

        made = layer_entries(
            name,
            (rows, columns),
            bits,
            packed,
            norms,
            dotted=not self.checkpoint.cut[name].variant.undotted,
            base=base_of(next(iter(parts.values())).key),
        )
        return [entry for part, entry in made.items() if part not in parts]

    def write_kept(self, names: list[str]) -> Path:
        plain = self.checkpoint.plain_names()
        folder = self.checkpoint.plain_info(plain[0])[2].parent if plain else self.checkpoint.files[0].parent
        path = _new_file(folder, "bf16")
        entries: list[Announced] = []
        for name in names:
            entry = self.source.entries[name][1]
            entries.append((name, DTYPES[entry.dtype][0], entry.shape, self._copy(name, entry.nbytes)))
        config = {key: value for key, value in self.source.metadata.items() if key not in self.checkpoint.metadata}
        write_safetensors(path, entries, config | self._replaced())
        return path

    def _copy(self, name: str, nbytes: int) -> Producer:
        def produce() -> torch.Tensor:
            self.tally.add(nbytes, name)
            return self.source.tensor(name)

        return produce


def _new_file(folder: Path, kind: str) -> Path:
    number = 0
    while (path := folder / f"repair_{number:02d}_{kind}.safetensors").exists():
        number += 1
    return path
