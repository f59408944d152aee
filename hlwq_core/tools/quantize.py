"""Making an HLWQ checkpoint from a dense one: layer by layer, resumable, whole or not at all.

Work goes on in a hidden folder beside the target (`.NAME.quantizing`): finished chunks and a journal. A run that was killed goes
on after the last finished chunk when it is started again with the same source and choices; the target appears only when
everything is written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.block_means import Outermost, outermost
from ..checkpoints.dense import DenseModel, open_dense
from ..checkpoints.find import SAFETENSORS, files_below, holds_codes
from ..codec.calibration import CalibrationFile
from ..codec.fidelity import Fidelity
from ..codec.layers import EncodedLayer, encode_layer
from ..codec.options import LAYOUTS, NORMS
from ..errors import DiskFullError, HLWQError, InputError
from ..format.packed import encoded_bytes
from ..format.places import write_beside, write_error
from ..format.record import BIASES, CORRECTED, RECORD, write_record
from ..format.safefile import DTYPES, SafeFile
from ..format.sizes import BITS
from ..format.variants import Announced, layer_entries, metas_first
from ..format.writer import Producer, write_safetensors
from ..models import families
from ..models.recipes import AUTO, FLOATING, Recipe, load_recipe
from .alone import alone
from .device import choose_device
from .job import Progress, Tally
from .quantize_biases import Biases, bias_of
from .quantize_choices import Wish, calibration_for
from .quantize_report import Calibrated, Report
from .replacing import finish, replace_all

CHUNK_BYTES = 1_500_000_000
_SPARE_BYTES = 64 << 20
_JOURNAL = "journal.json"


def quantize(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    bits: int = 5,
    norms: str = "author",
    rules: str | os.PathLike[str] = AUTO,
    layout: str = "published",
    device: str = "auto",
    codebook: str = "infinite",
    calibration: str | os.PathLike[str] | None = None,
    max_error: float | None = None,
    mean_bits: float | None = None,
    sensitivity: str | os.PathLike[str] | None = None,
    force: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
    progress: Progress | None = None,
) -> Report:
    """Quantize a dense model.

    Args:
        source: a safetensors file or a folder of them.
        target: a folder (`published`) or a `.safetensors` file (`single`).
        bits: 2, 3, 4, 5, 6 or 8, where the recipe leaves it open.
        norms: `author` (bit-exact with published files) or `search` (a third less error, same size and decoders).
        rules: a recipe's name or file, see `models.recipes`; `auto` takes the model's own, or `plain`.
        layout: `published` (folder that the author's tools read) or `single` (one file, with the model's `config`).
        device: `auto`, `cpu`, `cuda`, `cuda:1` …
        codebook: `infinite` (what published files use) or `finite`.
        calibration: what the layers' inputs look like (see `calibration`); layers in it are coded for the least error of
            their outputs and have their biases corrected, the others are coded with `norms`.
        max_error: each layer gets the fewest bits at which its relative squared error is at most this.
        mean_bits: layers get bits by what they cost and gain, so many a weight in the mean: by `sensitivity`, or else by the
            calibration's moments.
        sensitivity: a file of what each layer's loss is at each number of bits, see `bits`.
        force: replace an existing checkpoint at the target; anything else is never replaced.
        chunk_bytes: size of a file of codes in the published layout.
        progress: called with (bytes done, bytes in all, text); may raise to stop, and the work can be resumed.

    Raises:
        InputError: source or target do not fit, NaN weights, the disk is too small, another run writes to the target.
        DiskFullError: the disk became full on the way; what is finished is kept, and the next run goes on.
        HLWQError: see `open_dense`.
    """
    for what, value, choices in (("norms", norms, NORMS), ("layout", layout, LAYOUTS), ("bits", bits, BITS)):
        if value not in choices:
            raise InputError(
                f"unknown {what}", expected=", ".join(map(str, choices)), found=value, fix="take one of these"
            )
    opened = open_dense(source)
    recipe = recipe_for(opened, rules)
    target = Path(target)
    with alone(target):
        _check_place(opened, target, layout)
        on = choose_device(device)
        plan = _plan(opened, recipe, bits)
        known = None if calibration is None else calibration_for(calibration, opened, plan)
        tally = Tally(progress, sum(entry.nbytes for _, entry in opened.entries.values()))
        wish = Wish(max_error, mean_bits, sensitivity)
        plan = wish.plan(opened, plan, norms, codebook, on, known, tally)
        job = _Job(opened, target, plan, norms, codebook, layout, on, chunk_bytes, recipe, tally, known)
        if job.finish_replacement():
            return job.made()
        _check_free(target, layout, force)
        return job.run()


def recipe_for(source: DenseModel, rules: str | os.PathLike[str] = AUTO) -> Recipe:
    """The recipe of this name or file; for `auto` that of the model's family, `plain` for a model of none."""
    return load_recipe(families.recipe_of(source.entries) if rules == AUTO else rules)


def _plan(source: DenseModel, recipe: Recipe, bits: int) -> dict[str, int]:
    described = list(source.described())
    if not any(len(shape) == 2 and dtype in FLOATING and 0 not in shape for _, dtype, shape in described):
        raise InputError(
            "the model has no 2-D weights: there is nothing that HLWQ could quantize",
            file=source.path,
            found=f"{len(described)} tensors",
            fix="check that this is the model that you mean",
        )
    plan = recipe.plan(described, bits)
    if not plan:
        raise InputError(
            f"the recipe {recipe.name} matches no layer of this model",
            file=source.path,
            found=f"{len(described)} tensors, the first {described[0][0]}",
            fix="choose another recipe (plain fits any model), or give a file of your own: --rules FILE",
        )
    return plan


def _check_place(source: DenseModel, target: Path, layout: str) -> None:
    resolved, origin = target.resolve(), source.path.resolve()
    if resolved == origin or any(resolved == file.path.resolve() for file in source.files):
        raise InputError("source and target are the same", file=target, fix="choose another target")
    if origin.is_dir() and origin in resolved.parents or resolved in origin.parents:
        raise InputError(
            "source and target lie inside each other", file=target, found=origin, fix="choose a target elsewhere"
        )
    if layout == "single" and target.suffix != ".safetensors":
        raise InputError(
            "the single layout is one file",
            expected="a target that ends in .safetensors",
            found=target.name,
            fix="add .safetensors, or use --layout published for a folder",
        )
    if layout == "published" and target.suffix == ".safetensors":
        raise InputError(
            "the published layout is a folder",
            expected="a folder's name",
            found=target.name,
            fix="leave .safetensors out, or use --layout single for one file",
        )


def _work_folder(target: Path) -> Path:
    return target.with_name(f".{target.name}.quantizing")


def _old_folder(target: Path) -> Path:
    return target.with_name(f".{target.name}.quantizing.old")


def _check_free(target: Path, layout: str, force: bool) -> None:
    """Refuse to replace what is no checkpoint of this layout, and a checkpoint unless that is asked for."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    whole = [str(target)] if target.is_file() else files_below(target, SAFETENSORS, lambda where, reason: None)
    is_checkpoint = any(holds_codes(file) for file in whole) and target.is_dir() == (layout == "published")
    if not force or not is_checkpoint:
        found = "an HLWQ checkpoint" if is_checkpoint else "something that is no HLWQ checkpoint of this layout"
        beside = [str(path) for path in (_work_folder(target), _old_folder(target)) if path.exists()]
        if beside:
            found += f"; and beside it, of a run that did not end: {', '.join(beside)}"
        raise InputError(
            "the target exists already",
            file=target,
            found=found,
            fix="choose another name; on the command line --force replaces it"
            if is_checkpoint
            else "choose another target; this one is never replaced",
        )


@dataclass
class _Job:
    source: DenseModel
    target: Path
    plan: dict[str, int]
    norms: str
    codebook: str
    layout: str
    device: torch.device
    chunk_bytes: int
    recipe: Recipe
    tally: Tally
    calibration: CalibrationFile | None = None
    resumed: int = 0
    fidelity: dict[str, Fidelity] = field(default_factory=dict)
    outermost: dict[str, Outermost] = field(default_factory=dict)
    ways: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.work = _work_folder(self.target)
        self.journal_file = self.work / _JOURNAL
        self.replacing = self.work / "replacing.json"
        self.kept = [name for name in self.source.entries if name not in self.plan]
        self.biases = Biases(self.target)
        known = self.calibration
        with_bias = {n: bias_of(n, self.source.entries) for n in self.plan if known is not None and n in known}
        self.bias_names = {name: bias for name, bias in with_bias.items() if bias is not None}

    @property
    def metadata(self) -> dict[str, str]:
        return {
            "format": "pt",
            "hlwq.version": "1",
            "hlwq.codebook": self.codebook,
            "hlwq.bit_order": "msb",
            "hlwq.norms": "search" if self.calibration is not None and self.calibration.has_moments else self.norms,
            "hlwq.recipe": self.recipe.name,
            **({BIASES: CORRECTED} if self.bias_names else {}),
        }

    def run(self) -> Report:
        try:
            journal = self._open_journal()
            self._check_space(journal)
            chunks = self._chunks()
            for number, names in enumerate(chunks):
                path = self.work / "polarquant" / "codes" / f"chunk_{number:02d}_codes.safetensors"
                self._chunk(path, names, journal)
            if self.layout == "published":
                self._finish_published(journal)
            else:
                self._finish_single(len(chunks), journal)
        except (OSError, DiskFullError) as error:
            raise self._stopped(error) from error
        self._discard_work()
        self.tally.end()
        return self._report()

    def _discard_work(self) -> None:
        # The journal last: until it is gone, a next run can tell that this one came to its end.
        shutil.rmtree(self.work / "polarquant", ignore_errors=True)
        self.biases.discard()
        shutil.rmtree(self.work, ignore_errors=True)

    def _stopped(self, error: OSError | DiskFullError) -> HLWQError:
        refusal = write_error(self.target, error) if isinstance(error, OSError) else error
        if not isinstance(refusal, DiskFullError):
            return refusal
        return DiskFullError(
            "the disk is full: the checkpoint is not finished",
            file=self.target,
            found=refusal.found,
            fix=f"free some space and start it again, it goes on where it was; what is finished lies in {self.work} "
            "(delete that folder to give up)",
        )

    # -- the journal -------------------------------------------------------------------------------------------------

    def _signature(self) -> str:
        used = [*self.source.files, *([self.calibration.file] if self.calibration else [])]
        files = [(f.path.name, f.path.stat().st_size, f.path.stat().st_mtime_ns) for f in used]
        choices = [self.norms, self.codebook, self.layout, self.chunk_bytes, sorted(self.plan.items())]
        return hashlib.sha256(json.dumps([files, choices]).encode()).hexdigest()

    def _open_journal(self) -> dict[str, Any]:
        if (found := self._read_journal(self.journal_file)) is not None:
            return found
        # Another source or other choices: what lies there is of no use, and it is ours.
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        journal: dict[str, Any] = {"signature": self._signature(), "chunks": {}}
        self._write_journal(journal)
        return journal

    def _read_journal(self, path: Path) -> dict[str, Any] | None:
        """The journal of a run with this source and these choices; None where there is none that can be understood."""
        try:
            journal = json.loads(path.read_text("utf-8"))
            if journal["signature"] != self._signature():
                return None
            for chunk in journal["chunks"].values():
                int(chunk["size"])
                [Fidelity(*sums) for sums in chunk["fidelity"].values()]
                [Outermost(*shares) for shares in chunk["outermost"].values()]
                [*chunk["biases"], *chunk["ways"].items()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        return journal

    def _write_journal(self, journal: dict[str, Any]) -> None:
        with write_beside(self.journal_file) as file:
            file.write(json.dumps(journal).encode())

    def _check_space(self, journal: dict[str, Any]) -> None:
        coded = sum(sum(encoded_bytes(self._shape(name), bits)) for name, bits in self.plan.items())
        kept = sum(self.source.entries[name][1].nbytes for name in self.kept)
        written = sum(chunk["size"] for chunk in journal["chunks"].values())
        needed = coded + kept - written + _SPARE_BYTES
        if self.layout == "single":
            needed += coded
        free = shutil.disk_usage(self.work).free
        if free < needed:
            if not journal["chunks"]:
                shutil.rmtree(self.work, ignore_errors=True)
            raise InputError(
                "there is not enough room on the disk",
                file=self.target,
                expected=f"{needed / 1e9:.2f} GB free",
                found=f"{free / 1e9:.2f} GB",
                fix="free some space, or choose a target on another disk",
            )

    # -- encoding ----------------------------------------------------------------------------------------------------

    def _chunks(self) -> list[list[str]]:
        chunks: list[list[str]] = [[]]
        size = 0
        for name, bits in self.plan.items():
            nbytes = sum(encoded_bytes(self._shape(name), bits))
            if chunks[-1] and size + nbytes > self.chunk_bytes:
                chunks.append([])
                size = 0
            chunks[-1].append(name)
            size += nbytes
        return chunks

    def _shape(self, name: str) -> tuple[int, int]:
        rows, columns = self.source.entries[name][1].shape
        return rows, columns

    def _chunk(self, path: Path, names: list[str], journal: dict[str, Any]) -> None:
        record = journal["chunks"].get(path.name)
        there = record and path.is_file() and path.stat().st_size == record["size"]
        if there and self.biases.load(path.name, record["biases"]):
            self._made(record)
            self.tally.add(sum(self.source.entries[name][1].nbytes for name in names), path.name)
            return
        tensors: list[Announced] = []
        for name in names:
            tensors += self._encoded_tensors(name)
        write_safetensors(path, metas_first(tensors), self.metadata)
        self.biases.save(path.name, [self.bias_names[n] for n in names if n in self.bias_names])
        journal["chunks"][path.name] = {
            "size": path.stat().st_size,
            "fidelity": {
                name: [f.power, f.error, f.dot, f.decoded, f.weights]
                for name, f in ((name, self.fidelity[name]) for name in names)
            },
            "ways": {n: self.ways[n] for n in names},
            "biases": [self.bias_names[n] for n in names if self.bias_names.get(n) in self.biases],
            "outermost": {n: astuple(self.outermost[n]) for n in names if n in self.outermost},
        }
        self._write_journal(journal)

    def _encoded_tensors(self, name: str) -> list[Announced]:
        bits = self.plan[name]
        made: dict[str, torch.Tensor] = {}

        def packed() -> torch.Tensor:
            weight = self.source.tensor(name)
            file = self.source.entries[name][0].path

            def told(nbytes: int) -> None:
                self.tally.add(nbytes, name)

            encoded = encode_layer(
                weight,
                bits,
                self.norms,
                self.codebook,
                self.device,
                name=name,
                file=file,
                told=told,
                inputs=self.calibration.inputs(name) if self.calibration else None,
                has_bias=name in self.bias_names,
            )
            self._note(name, bits, encoded)
            made["norms"] = encoded.norms
            return encoded.codes.reshape(-1)

        dotted = self.layout == "single"
        made_of = layer_entries(name, self._shape(name), bits, packed, lambda: made.pop("norms"), dotted=dotted)
        return list(made_of.values())

    def _note(self, name: str, bits: int, encoded: EncodedLayer) -> None:
        """What the report, the journal and the bias need of a layer."""
        self.fidelity[name] = encoded.fidelity
        self.ways[name] = "no inputs" if not encoded.known else "worse" if encoded.kept_searched else encoded.way
        if encoded.bias is not None:
            self.biases.add(self.bias_names[name], encoded.bias)
        seen = outermost(encoded.codes, encoded.norms, bits, "msb")
        if seen is not None:
            self.outermost[name] = seen

    # -- the rest of the files ---------------------------------------------------------------------------------------

    def _kept_tensors(self) -> list[Announced]:
        def entry(name: str) -> Announced:
            found = self.source.entries[name][1]

            def produce() -> torch.Tensor:
                self.tally.add(found.nbytes, name)
                return self.biases.corrected(name, self.source.tensor(name))

            return name, DTYPES[found.dtype][0], found.shape, produce

        return [entry(name) for name in self.kept]

    def _finish_published(self, journal: dict[str, Any]) -> None:
        keys = [family.key for family in families.FAMILIES if self.recipe.name.startswith(family.key)]
        stem = keys[0] if keys else self.target.name
        if self.kept or self.source.metadata:
            path = self.work / "polarquant" / "bf16" / f"{stem}_bf16.safetensors"
            write_safetensors(path, self._kept_tensors(), self.source.metadata | self.metadata)
        written = sorted((self.work / "polarquant").rglob("*.safetensors"))
        write_record(self.work, written, lambda name, _: self.tally.tell(f"sha256 of {name}"))
        self._note_replaced(journal)
        if self.target.is_dir() and not any(self.target.iterdir()):
            self.target.rmdir()
        if not self.target.exists():
            os.replace(self.work, self.target)
            (self.target / _JOURNAL).unlink()
            return
        # The user's upscalers and notes stay; all other weights are the old checkpoint's and go, at the very last.
        old = _old_folder(self.target)
        shutil.rmtree(old, ignore_errors=True)  # of a run of 0.1 that was killed
        there = [item for item in sorted(self.target.iterdir()) if item.name != "upscalers"]
        replace_all(
            self.replacing,
            self.target.parent,
            away=[(item, old / item.name) for item in there if _belongs_to_checkpoint(item)],
            into=[(item, self.target / item.name) for item in sorted(self.work.iterdir()) if item != self.journal_file],
            discard=[old],
        )

    def _finish_single(self, chunks: int, journal: dict[str, Any]) -> None:
        tensors = self._kept_tensors()
        for number in range(chunks):
            file = SafeFile(self.work / "polarquant" / "codes" / f"chunk_{number:02d}_codes.safetensors")
            tensors += [(n, DTYPES[e.dtype][0], e.shape, _reader(file, n)) for n, e in file.entries.items()]
        self._note_replaced(journal)
        write_safetensors(self.target, metas_first(tensors), self.source.metadata | self.metadata)

    # -- after a kill between the last renames -----------------------------------------------------------------------

    def _note_replaced(self, journal: dict[str, Any]) -> None:
        """Before the target changes: whoever finds another one there later knows that this run came to its end."""
        journal["replaced"] = _identity(self.target)
        self._write_journal(journal)

    def finish_replacement(self) -> bool:
        """Finish what an earlier run was killed in. True if that leaves nothing to do: the target is what this run would make."""
        try:
            finish(self.replacing, self.target.parent)
            with contextlib.suppress(OSError):
                self.work.rmdir()  # empty: a run was killed in its very last act
            inside = self.target / _JOURNAL
            if (journal := self._read_journal(inside)) is not None and not self.work.exists():
                inside.unlink()  # after the target's only rename
            elif (journal := self._read_journal(self.journal_file)) is None or "replaced" not in journal:
                return False
            elif self.layout == "published" and (self.work / "polarquant").exists():
                return False
            elif _identity(self.target) in (None, journal["replaced"]) or not self._is_at_target():
                return False
        except OSError as error:
            raise write_error(self.target, error) from error
        names = {name for chunk in journal["chunks"].values() for name in chunk["fidelity"]}
        if names != self.plan.keys():
            return False
        for chunk in journal["chunks"].values():
            self._made(chunk)
        return True

    def _is_at_target(self) -> bool:
        """Whether a single file at the target has the tensors that this run would write."""
        if self.layout == "published":
            return True
        try:
            found = SafeFile(self.target).entries
        except HLWQError:
            return False
        return {name.removesuffix("__meta") for name in found if name.endswith("__meta")} == self.plan.keys()

    def _made(self, chunk: dict[str, Any]) -> None:
        """A chunk that an earlier run made."""
        self.fidelity.update({name: Fidelity(*sums) for name, sums in chunk["fidelity"].items()})
        self.outermost.update({name: Outermost(*shares) for name, shares in chunk["outermost"].items()})
        self.ways.update(chunk["ways"])
        self.resumed += 1

    def made(self) -> Report:
        """The report of an earlier run, and nothing of it left beside the target."""
        self._discard_work()
        self.tally.end()
        return self._report()

    def _report(self) -> Report:
        overall = Fidelity()
        for fidelity in self.fidelity.values():
            overall.add(fidelity)
        sizes = [encoded_bytes(self._shape(name), bits) for name, bits in self.plan.items()]
        coded = sum(map(sum, sizes))
        worst = sorted(((n, f.relative_error) for n, f in self.fidelity.items()), key=lambda item: -item[1])
        return Report(
            target=str(self.target),
            layout=self.layout,
            recipe=self.recipe.name,
            norms=self.norms,
            layers=len(self.plan),
            kept=len(self.kept),
            weights=overall.weights,
            bits_a_weight=coded * 8 / overall.weights,
            bytes_codes=coded,
            bytes_kept=sum(self.source.entries[name][1].nbytes for name in self.kept),
            cosine=overall.cosine,
            relative_error=overall.relative_error,
            resumed_chunks=self.resumed,
            worst=worst[:5],
            outermost=self.outermost,
            bits={name: bits for name, bits in self.plan.items()},
            calibration=self._calibrated(),
            **_contents(self.source),
        )

    def _calibrated(self) -> Calibrated | None:
        if self.calibration is None:
            return None
        named = {way: [n for n, w in self.ways.items() if w == way] for way in ("compensated", "worse", "no inputs")}
        corrected = [n for n, bias in self.bias_names.items() if bias in self.biases]
        without = [n for n in self.plan if n in self.calibration and n not in self.bias_names]
        return Calibrated(
            str(self.calibration.path),
            self.calibration.samples,
            self.calibration.loras,
            len(named["compensated"]),
            named["worse"],
            named["no inputs"],
            len(corrected),
            without,
        )


def _contents(source: DenseModel) -> dict[str, Any]:
    """The model's name and its parts, there and not; nothing of a model of no known family."""
    found = families.recognise(source.entries)
    if found is None:
        return {}
    names = [found.canonical(name) for name in source.entries]
    there = [part for part in found.family.parts if any(map(part.holds, names))]
    absent = {part.name: part.instead for part in found.family.parts if part not in there}
    return {"model": found.family.name, "holds": [part.name for part in there], "absent": absent}


def _identity(path: Path) -> list[int] | None:
    """What tells a file or folder from another one in its place."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_ino, found.st_mtime_ns]


def _belongs_to_checkpoint(item: Path) -> bool:
    if item.is_dir():
        return any(True for _ in files_below(item, SAFETENSORS, lambda where, reason: None))
    return item.suffix == ".safetensors" or item.name in (RECORD, "polar_config.json")


def _reader(file: SafeFile, name: str) -> Producer:
    return lambda: file.tensor(name)
