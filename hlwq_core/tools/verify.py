"""Whether a checkpoint can be trusted: structure, norms, the self-check of every layer, checksums, the original."""

from __future__ import annotations

import os
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import block_means
from ..checkpoints.block_means import Outermost, outermost
from ..checkpoints.checkpoint import Checkpoint, open_checkpoint
from ..checkpoints.completeness import component, whole
from ..checkpoints.dense import DenseModel, open_dense
from ..checkpoints.detect import expected_rms, level_rms
from ..codec.fidelity import Fidelity, compare
from ..errors import ChangedError, FormatError, HLWQError, IncompleteError, ListingError
from ..format.bounded import is_file
from ..format.codebook import SQRT_BLOCK, VERSIONS
from ..format.packed import PackedLayer
from ..format.record import BIASES, CORRECTED, RECORD, REPAIRED, file_sha256, read_record
from .device import choose_device
from .job import Progress, Tally

# Relative squared error of Gaussian weights with the author's norms; three times as much is no quantization error.
EXPECTED_ERROR = {2: 0.116, 3: 0.034, 4: 0.0094, 5: 0.0029, 6: 0.00105, 8: 8.0e-5}
_TOO_FAR = 3.0
# Blocks with means cost the author's norms ten times as much and more; another model's layer has an error of 1 and more.
_TOO_FAR_WITH_MEANS = 0.6
_ROWS_WEIGHTS = 1 << 24


@dataclass
class Problem:
    """Something wrong: `kind` is structure, norms, codes, sha256, missing or original."""

    kind: str
    what: str
    where: str
    fix: str = ""


@dataclass
class LayerCheck:
    """One quantized layer; cosine and relative error only where there is an original."""

    name: str
    bits: int
    rms: float | None
    cosine: float | None = None
    relative_error: float | None = None
    outermost: Outermost | None = None


@dataclass
class Verification:
    """The result; `layers` has the worst first where there is an original."""

    path: str
    ok: bool = True
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    layers: list[LayerCheck] = field(default_factory=list)
    median_rms: float | None = None
    checksums: int = 0
    components: dict[str, dict[str, float]] = field(default_factory=dict)
    overall: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def add(self, kind: str, what: str, where: str, fix: str = "") -> None:
        self.ok = False
        self.problems.append(Problem(kind, what, where, fix))

    def text(self) -> str:
        """The result for people."""
        lines = [f"{self.path}: {'sound' if self.ok else f'{len(self.problems)} problems'}"]
        if self.layers:
            rms = f", median RMS {self.median_rms:.4f}" if self.median_rms is not None else ""
            lines.append(f"  {len(self.layers)} layers checked{rms}; {self.checksums} files match their sha256")
        lines += [f"  note: {note}" for note in self.notes]
        seen = [(layer.name, layer.outermost) for layer in self.layers if layer.outermost is not None]
        lines += [f"  {line}" for line in block_means.lines(seen)]
        if self.overall:
            lines.append(f"  {'':60} {'cosine':>9} {'rel. error':>11}")
            for name, figures in [*self.components.items(), ("all", self.overall)]:
                lines.append(f"  {name:60} {figures['cosine']:9.6f} {figures['relative_error']:11.3e}")
            lines.append("  worst layers:")
            for layer in self.layers[:5]:
                if layer.relative_error is not None:
                    lines.append(f"    {layer.relative_error:.3e}  cosine {layer.cosine:.6f}  {layer.name}")
        for problem in self.problems[:20]:
            lines.append(f"  {problem.kind}: {problem.what}\n    {problem.where}")
            if problem.fix:
                lines.append(f"    what to do: {problem.fix}")
        return "\n".join(lines)


def verify(
    path: str | os.PathLike[str],
    against: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    progress: Progress | None = None,
) -> Verification:
    """Check a checkpoint.

    Args:
        path: the checkpoint's folder or file.
        against: the dense original; every layer is decoded and compared with it.
        device: where to decode.
        progress: called with (done, total, text) in bytes of codes and files; may raise to stop.

    Returns:
        What was found; nothing is changed.

    Raises:
        InputError, UnsupportedError: the path holds nothing that could be checked.
    """
    result = Verification(str(path))
    try:
        checkpoint = open_checkpoint(path, partial=True, mapped=False)
        original = open_dense(against) if against is not None else None
        if original is not None:
            checkpoint.resolve_names(original.entries)
            checkpoint.set_shapes({name: entry.shape for name, (_, entry) in original.entries.items()})
        run = _Run(checkpoint, original, choose_device(device), result, progress)
    except (FormatError, IncompleteError, ListingError) as error:
        if (
            against is not None
            and error.file is not None
            and Path(against) in (Path(error.file), *Path(error.file).parents)
        ):
            raise
        result.add("structure", error.what, f"{error.file or path} {error.tensor or ''}".strip(), error.fix or "")
        return result
    try:
        run.all()
    except ChangedError as error:
        result.add("structure", error.what, f"{error.file} {error.tensor}", error.fix or "")
    return result


def rms_limits(bits: int, searched: bool) -> tuple[float, float]:
    """Between which values the RMS of a layer's levels lies.

    Above are codes that are random bytes (uniform codes give the RMS of the table); below is a layer of a few huge values.
    Searched norms use more of the table, hence a higher RMS than 1.
    """
    from ..format.codebook import centroids

    uniform = float(centroids(bits).square().mean().sqrt())
    return 0.2, 0.93 * uniform if searched or bits > 2 else 1.06


@dataclass
class _Run:
    checkpoint: Checkpoint
    original: DenseModel | None
    device: torch.device
    result: Verification
    progress: Progress | None

    def __post_init__(self) -> None:
        self.infos = {name: self.checkpoint.info(name) for name in self.checkpoint.names()}
        self.folder = self.checkpoint.path if self.checkpoint.path.is_dir() else self.checkpoint.path.parent
        self.record = self._record() if self.checkpoint.path.is_dir() else {}
        total = sum(info.nbytes for info in self.infos.values()) + sum(r["size"] for r in self.record.values())
        self.tally = Tally(self.progress, total)

    def _record(self) -> dict[str, dict[str, Any]]:
        try:
            return read_record(self.folder)
        except HLWQError as error:
            self.result.add("sha256", f"{error.what}: {error.found}", str(error.file), error.fix or "")
            return {}

    def all(self) -> None:
        self._names()
        self._layers()
        self._checksums()
        if self.original is not None:
            self._plain_tensors(self.original)

    def _names(self) -> None:
        """What the original, or the model that this is, says must be there."""
        found = whole(self.checkpoint)
        missing = found.missing
        if self.original is not None:
            there = {*self.checkpoint.names(), *self.checkpoint.plain_names()}
            missing = [
                name
                for name in self.original.entries
                if name not in there and not any(part.holds(name) for part in found.absent)
            ]
        if found.error is not None:
            self.result.add("structure", found.error.what, found.error.tensor or found.model, found.error.fix or "")
        for name in found.wrong_shapes:
            self.result.add("structure", f"the shape is not that of {found.model}", name)
        for name in found.unexpected[:20]:
            self.result.add(
                "structure", f"one of {len(found.unexpected)} tensors that have no place in {found.model}", name
            )
        for part in found.absent:
            self.result.notes.append(f"{part.name}: not in this checkpoint; use {part.instead}")
        for name in missing[:20]:
            self.result.add(
                "missing",
                f"one of {len(missing)} tensors that are in no file",
                name,
                "download the rest, or complete it: python -m hlwq_core repair PATH --from ORIGINAL",
            )

    def _layers(self) -> None:
        searched = self.checkpoint.metadata.get("hlwq.norms") == "search"
        overall = Fidelity()
        components: dict[str, Fidelity] = {}
        for name, info in self.infos.items():
            try:
                packed = self.checkpoint.packed(name)
                self.checkpoint.check_data(name)
            except ChangedError:
                raise  # whatever is found from here on is of two files
            except HLWQError as error:
                self.result.add("norms" if "norms" in error.what else "codes", error.what, name, error.fix or "")
                self.tally.add(info.nbytes, name)
                continue
            rms = level_rms(packed.codes, packed.norms, packed.bits, packed.packing, packed.table() * SQRT_BLOCK)
            low, high = rms_limits(info.bits, searched)
            if rms is not None and not low < rms < high:
                self.result.add(
                    "codes",
                    f"the codes look like no quantized weight: RMS {rms:.3f}, expected {low:.1f} to {high:.2f}",
                    name,
                    "download the file again, or replace the layer with python -m hlwq_core repair",
                )
            check = LayerCheck(name, info.bits, rms)
            check.outermost = outermost(packed.codes, packed.norms, packed.bits, packed.packing)
            self.result.layers.append(check)
            if self.original is not None and name in self.original.entries:
                fidelity = self._compare(name, packed, self.original)
                if fidelity is not None:
                    check.cosine, check.relative_error = fidelity.cosine, fidelity.relative_error
                    overall.add(fidelity)
                    components.setdefault(component(name), Fidelity()).add(fidelity)
                    self._judge(check)
            self.tally.add(info.nbytes, name)
        self._median(searched)
        if overall.weights:
            self.result.overall = _figures(overall)
            self.result.components = {name: _figures(f) for name, f in sorted(components.items())}
            self.result.layers.sort(key=lambda layer: -(layer.relative_error or 0.0))

    def _median(self, searched: bool) -> None:
        layers = [layer for layer in self.result.layers if layer.rms is not None]
        if not layers:
            return
        self.result.median_rms = statistics.median(layer.rms for layer in layers if layer.rms is not None)
        if searched:
            return
        for bits in sorted({layer.bits for layer in layers}):
            values = [layer.rms for layer in layers if layer.bits == bits and layer.rms is not None]
            median = statistics.median(values)
            books = {info.codebook for info in self.infos.values() if info.bits == bits}
            expected = [expected_rms(bits, book) for book in books if book in VERSIONS]
            if expected and min(abs(median - e) for e in expected) > 0.02:
                text = f"{bits} bits: median RMS {median:.4f}, expected {expected[0]:.4f}"
                if median < 0.9 and len(values) >= 3:
                    self.result.add(
                        "codes", f"{text}: written with another codebook, or damaged", str(self.checkpoint.path)
                    )
                else:
                    self.result.notes.append(f"{text}: norms were searched, or the layers are few")

    def _compare(self, name: str, packed: PackedLayer, original: DenseModel) -> Fidelity | None:
        weight = original.tensor(name)
        if tuple(weight.shape) != packed.shape:
            self.result.add("original", f"the shape is {list(packed.shape)}, the original's {list(weight.shape)}", name)
            return None
        fidelity = Fidelity()
        step = max(1, _ROWS_WEIGHTS // packed.shape[1])
        for start in range(0, packed.shape[0], step):
            rows = slice(start, start + step)
            decoded = self.checkpoint.decode(name, torch.float32, self.device, rows)
            fidelity.add(compare(weight[rows].to(self.device).float(), decoded))
            self.tally.tell(name)
        return fidelity

    def _judge(self, check: LayerCheck) -> None:
        allowed = _TOO_FAR * EXPECTED_ERROR.get(check.bits, 1.0)
        if check.outermost is not None and check.outermost.notable:
            allowed = max(allowed, _TOO_FAR_WITH_MEANS)
        assert check.relative_error is not None
        if not check.relative_error <= allowed:
            self.result.add(
                "original",
                f"relative squared error {check.relative_error:.3e}, at {check.bits} bits at most {allowed:.1e} is expected",
                check.name,
                "this layer is damaged, or was made from another model",
            )

    def _plain_tensors(self, original: DenseModel) -> None:
        corrected = set()
        if self.checkpoint.metadata.get(BIASES) == CORRECTED:
            corrected = {name.removesuffix("weight") + "bias" for name in self.infos if name.endswith("weight")}
            self.result.notes.append(
                "biases of quantized layers were corrected: they are not compared with the original's"
            )
        for name in self.checkpoint.plain_names():
            if name not in original.entries:
                continue
            ours, theirs = self.checkpoint.plain(name), original.tensor(name)
            if name in corrected and ours.shape == theirs.shape and bool(torch.isfinite(ours).all()):
                continue
            if ours.shape != theirs.shape or not torch.equal(ours.to(theirs.dtype), theirs):
                self.result.add("original", "a tensor that was kept differs from the original's", name)
            self.tally.tell(name)

    def _checksums(self) -> None:
        if not self.record:
            self.result.notes.append(f"no {RECORD}: sha256 not compared")
        for name, expected in self.record.items():
            path = self.folder / name
            if not _is_inside(path, self.folder):
                self.result.add("sha256", "the record names a file outside the folder", name)
            elif not is_file(path) and self.checkpoint.metadata.get(REPAIRED + name):
                self.result.notes.append(f"{name} is not there; a repair has made its tensors anew")
            elif not is_file(path):
                self.result.add("sha256", "the record names a file that is not there", name, "download it again")
            else:
                self._checksum(path, name, expected)

    def _checksum(self, path: Path, name: str, expected: dict[str, Any]) -> None:
        try:
            if os.stat(path).st_size == expected["size"] and self._digest(path, name) == expected["sha256"]:
                self.result.checksums += 1
                return
        except (OSError, HLWQError) as error:
            self.result.add("sha256", f"the file cannot be read: {getattr(error, 'strerror', None) or error}", name)
            return
        self.result.add("sha256", "the file is not what was written or published", name, "download it again")

    def _digest(self, path: Path, name: str) -> str:
        return file_sha256(path, lambda nbytes: self.tally.add(nbytes, f"sha256 of {name}"))


def _is_inside(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a link into itself, by the version of Python
        return False


def _figures(fidelity: Fidelity) -> dict[str, float]:
    return {"cosine": fidelity.cosine, "relative_error": fidelity.relative_error, "weights": float(fidelity.weights)}
