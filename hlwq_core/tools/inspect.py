"""What a checkpoint is and whether it is whole: from headers, and the small sample that finds bit order and codebook."""

from __future__ import annotations

import contextlib
import math
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import block_means
from ..checkpoints.block_means import Outermost
from ..checkpoints.checkpoint import Checkpoint, open_checkpoint
from ..checkpoints.completeness import STACK, component, whole
from ..checkpoints.find import files_below, is_folder
from ..errors import FormatError, HLWQError, IncompleteError, ListingError, printable
from ..format.bounded import is_file, open_regular, read_object
from ..format.kinds import HEAD, LFS_POINTER, kind_of
from ..format.record import RECORD
from ..models import families

if TYPE_CHECKING:
    from PIL import Image

QUANTIZED, PLAIN, MISSING = "quantized", "plain", "missing"
_CARD_CODES = 4.6e9
_SIGN = {QUANTIZED: "█", PLAIN: "▒", MISSING: "·"}
_ENDINGS = (".safetensors", ".partial", ".incomplete")
# Lines of each list of a report; cells of the picture of coverage.
_SHOWN = 20
_COMPONENTS = 100
_LABEL = 80
_ROWS = 500
_CELLS = 100_000


@dataclass
class Part:
    """One component: how many of its tensors are quantized, plain, missing; `expected` is their sum."""

    quantized: int = 0
    plain: int = 0
    missing: int = 0

    @property
    def expected(self) -> int:
        return self.quantized + self.plain + self.missing


@dataclass
class Inspection:
    """The result. `grid` holds, for the largest stack of blocks, layer → state in each block (`quantized` …); `absent` the
    parts that come from files of their own → what to use for them; `outermost` of each layer, see `block_means`."""

    path: str
    model: str = "unknown"
    complete: bool = False
    files: list[dict[str, Any]] = field(default_factory=list)
    nbytes: int = 0
    report: dict[str, Any] = field(default_factory=dict)
    expected_bytes_quantized: int | None = None
    components: dict[str, Part] = field(default_factory=dict)
    stack: str = ""
    grid: dict[str, list[str | None]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    wrong_shapes: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    hypotheses: list[str] = field(default_factory=list)
    outermost: dict[str, Outermost] = field(default_factory=dict)
    next_step: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def inspect(path: str | os.PathLike[str]) -> Inspection:
    """Look at a checkpoint.

    Args:
        path: its folder or file.

    Returns:
        What it is, what is missing, why that may be, and what to do next. A folder whose files are damaged is described as
        far as it goes, with `error`.

    Raises:
        InputError, UnsupportedError: nothing there, or another format.
    """
    path = Path(path)
    found = Inspection(str(path))
    _list_files(path, found)
    try:
        checkpoint = open_checkpoint(path, partial=True, mapped=False)
        if not checkpoint.names():
            raise IncompleteError(
                "no layer is whole: all lack codes, norms or meta",
                file=path,
                fix="download the checkpoint again: whole files are missing",
            )
        found.report = checkpoint.report()
        seen = ((name, checkpoint.outermost(name)) for name in checkpoint.names())
        found.outermost = {name: shares for name, shares in seen if shares is not None}
    except (FormatError, IncompleteError, ListingError) as error:
        found.error = str(error)
        _explain(path, found, error)
        return found
    _count(checkpoint, found)
    _explain(path, found, None)
    return found


def _list_files(path: Path, found: Inspection) -> None:
    def skip(where: str, reason: str) -> None:
        if len(found.hypotheses) < _SHOWN:
            found.hypotheses.append(printable(f"{os.path.relpath(where, path)} is passed over: {reason}"))

    if is_file(path):
        files = [str(path)]
    else:
        files = sorted(files_below(path, _ENDINGS, skip, hidden=True) if is_folder(path) else ())
    for file in files:
        name = path.name if file == str(path) else Path(file).relative_to(path).as_posix()
        with contextlib.suppress(OSError):
            found.files.append({"name": name, "bytes": os.stat(file).st_size})
    found.nbytes = sum(file["bytes"] for file in found.files)


def _count(checkpoint: Checkpoint, found: Inspection) -> None:
    states = dict.fromkeys(checkpoint.names(), QUANTIZED) | dict.fromkeys(checkpoint.plain_names(), PLAIN)
    if checkpoint.cut:
        found.hypotheses.append(
            f"{len(checkpoint.cut)} layers are cut: some of their codes, norms or meta lie in a file that is not there"
        )
    result = whole(checkpoint)
    found.model, found.wrong_shapes, found.unexpected = result.model, result.wrong_shapes, result.unexpected
    found.absent = {part.name: part.instead for part in result.absent}
    found.expected_bytes_quantized = result.bytes_quantized
    if result.error is not None:
        found.error = str(result.error)
        found.hypotheses.append(result.error.what)
    found.missing = result.missing
    states |= dict.fromkeys(result.missing, MISSING)
    for name, state in states.items():
        part = found.components.setdefault(_part(name), Part())
        setattr(part, state, getattr(part, state) + 1)
    _fill_grid(states, found)
    found.complete = result.complete


def _part(name: str) -> str:
    """Component, coarser than verify's: `vae.decoder.up_blocks` is `vae`."""
    found = component(name)
    for root in ("vae", "audio_vae", "vocoder", "text_embedding_projection"):
        if found == root or found.startswith(root + "."):
            return root
    if found.startswith("model.diffusion_model.") and found.count(".") > 2 or ".adaln" in found:
        return ".".join(found.split(".")[:3])
    if found.startswith("model.diffusion_model.") and not found.endswith("blocks"):
        return "model.diffusion_model (rest)"
    return found


def _fill_grid(states: dict[str, str], found: Inspection) -> None:
    stacks: dict[str, dict[str, dict[int, str]]] = {}
    for name, state in states.items():
        match = STACK.match(name)
        if match:
            stacks.setdefault(match[1], {}).setdefault(match[3], {})[int(match[2])] = state
    if not stacks:
        return

    def weight(stack: str) -> tuple[int, int]:
        cells = [state for blocks in stacks[stack].values() for state in blocks.values()]
        return sum(state != PLAIN for state in cells), len(cells)

    found.stack = max(stacks, key=weight)
    rows = stacks[found.stack]
    depth = 1 + max(max(blocks) for blocks in rows.values())
    for layer, blocks in list(rows.items())[: _CELLS // depth]:
        if layer.endswith("weight") and not layer.endswith("_norm.weight") or MISSING in blocks.values():
            found.grid[layer] = [blocks.get(i) for i in range(depth)]


def _explain(path: Path, found: Inspection, error: HLWQError | None) -> None:
    """Hypotheses that fit, and the next step."""
    say = found.hypotheses.append
    pointers = [f["name"] for f in found.files if f["bytes"] < 1024 and _is_pointer(path, f["name"])]
    if pointers:
        say(f"git clone without Git LFS: {len(pointers)} files are pointers of some 130 bytes, such as {pointers[0]}")
    unfinished = [f["name"] for f in found.files if not f["name"].endswith(".safetensors")]
    if unfinished:
        say(f"a download or a quantization was interrupted: {unfinished[0]} is unfinished")
    chunk = re.compile(r"chunk_([0-9]{1,4})(?![0-9])")
    numbers = {int(m[1]) for f in found.files if (m := chunk.search(Path(f["name"]).name))}
    gaps = [n for n in range(max(numbers, default=-1) + 1) if n not in numbers]
    if gaps:
        more = f" and {len(gaps) - _SHOWN} more" if len(gaps) > _SHOWN else ""
        say("chunk files are missing in the numbering: " + ", ".join(f"chunk_{n:02d}" for n in gaps[:_SHOWN]) + more)
    if error is not None:
        say(error.what + (f" ({Path(error.file).name})" if error.file else ""))
    elif found.missing:
        _explain_missing(found)
    if path.is_dir() and found.model.startswith(families.DEFAULT.name) and not found.report.get("upscalers"):
        say("there are no upscalers beside it: text and image to video work, the two-stage workflow needs them")
    found.next_step = _next_step(path, found, error, bool(pointers or unfinished))


def _next_step(path: Path, found: Inspection, error: HLWQError | None, unfinished: bool) -> str:
    if found.complete and not unfinished:
        return f"python -m hlwq_core verify {path}, then load it in ComfyUI with HLWQ Load Checkpoint"
    if path.is_file():
        again = (
            f"get the file again, or make it anew: python -m hlwq_core quantize ORIGINAL {path.name} --layout single"
        )
        return error.fix if error is not None and error.fix else again
    repository = _repository(path)
    repair = f"python -m hlwq_core repair {path} --from ORIGINAL"
    if repository is None and found.model == "unknown" and error is None:
        return f"get what is missing where the checkpoint came from, or {repair}"
    fetch = f"python -m hlwq_core download {repository + ' ' if repository else ''}--to {path}"
    if repository is None and found.model == "unknown":
        fetch = f"if it is the published {families.DEFAULT.name}, {fetch}"
    if error is not None or unfinished:
        return f"{fetch} fetches what is missing and checks the rest"
    return f"{fetch} fetches what the repository has; if layers are missing there too, {repair}"


def _repository(path: Path) -> str | None:
    """Where the folder was downloaded from, as the download noted it."""
    try:
        noted = read_object(path / RECORD, "the record of checksums").get("repository")
    except HLWQError:
        return None
    return noted if isinstance(noted, str) and families.REPOSITORY_NAME.fullmatch(noted) else None


def _explain_missing(found: Inspection) -> None:
    say = found.hypotheses.append
    blocks: dict[int, int] = {}
    whole: dict[int, bool] = {}
    depth = max((len(row) for row in found.grid.values()), default=0)
    for number in range(depth):
        states = [row[number] for row in found.grid.values() if row[number] is not None]
        blocks[number] = states.count(MISSING)
        whole[number] = bool(states) and blocks[number] == len(states)
    lacking = [n for n, count in blocks.items() if count]
    if lacking and all(whole[n] for n in lacking):
        say(
            f"whole blocks are missing ({_ranges(lacking)}): one or more files of codes were never fetched, or never published"
        )
    elif lacking:
        say(f"layers of {len(lacking)} blocks are missing ({_ranges(lacking)})")
    for name, part in found.components.items():
        if part.missing and part.missing == part.expected:
            say(f"all {part.missing} tensors of {name} are missing: the file that holds them is not there")
    have = found.report.get("bytes_quantized", 0)
    if found.expected_bytes_quantized and have < 0.98 * found.expected_bytes_quantized:
        share = have / found.expected_bytes_quantized
        say(
            f"the codes are {have / 1e9:.2f} GB of {found.expected_bytes_quantized / 1e9:.2f} GB: "
            f"{share:.1%}, worth {share * 48:.1f} of 48 blocks"
        )
        if abs(have - _CARD_CODES) < 0.15e9:
            say("that is the 4.6 GB which the model card lists: the published folder itself may be incomplete")


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in runs)


def _is_pointer(path: Path, name: str) -> bool:
    file = path if path.name == name and is_file(path) else path / name
    try:
        with open_regular(file) as opened:
            return kind_of(opened.read(HEAD), os.fstat(opened.fileno()).st_size) is LFS_POINTER
    except (OSError, HLWQError):
        return False


def table(found: Inspection) -> str:
    """The result for people."""
    lines = [
        f"{found.path}: {found.model}, {'complete' if found.complete else 'NOT complete'}, {found.nbytes / 1e9:.3f} GB"
    ]
    report = found.report
    if report:
        for key in ("variants", "bits", "packings", "codebooks"):
            lines.append(
                f"  {key:<12} " + ", ".join(f"{value} ({count} layers)" for value, count in report[key].items())
            )
        for seen in report["detected"]:
            sure = (
                "found in the data"
                if seen["sure"]
                else "from the file's own notes, or assumed: the data does not decide"
            )
            lines.append(
                f"  detected     {seen['bits']} bits: {seen['packing']}, {seen['codebook']}; RMS {seen['rms']} ({sure})"
            )
        expected = found.expected_bytes_quantized
        lines.append(
            f"  quantized    {report['quantized']} layers, {report['weights'] / 1e9:.3f} billion weights, "
            f"{report['bytes_quantized'] / 1e9:.3f} GB"
            + (f" (the published set: {expected / 1e9:.3f})" if expected else "")
            + f", {report['bits_a_weight']:.3f} bits a weight"
        )
        lines.append(f"  plain        {report['plain']} tensors, {report['bytes_plain'] / 1e9:.3f} GB")
        lines.append(f"  upscalers    {', '.join(report['upscalers']) or 'none'}")
        lines += _indented("block means", block_means.lines(found.outermost.items()))
    if found.components:
        lines.append(f"  {'component':<58} quantized  plain  missing")
        for name, part in sorted(found.components.items())[:_COMPONENTS]:
            lines.append(f"  {name:<58} {part.quantized:9} {part.plain:6} {part.missing:8}")
        if len(found.components) > _COMPONENTS:
            lines.append(f"  … and {len(found.components) - _COMPONENTS} more components")
    if found.grid:
        lines.append(f"  {found.stack}: a column for each block; █ quantized, ▒ plain, · missing")
        width = max(len(_label(layer)) for layer in found.grid)
        for layer, row in found.grid.items():
            lines.append(f"    {_label(layer):<{width}} " + "".join(_SIGN[s] if s else " " for s in row))
    for name in found.missing[:10]:
        lines.append(f"  missing: {name}")
    if len(found.missing) > 10:
        lines.append(f"  … and {len(found.missing) - 10} more")
    lines += [f"  wrong shape: {name}" for name in found.wrong_shapes[:10]]
    lines += [f"  no place in {found.model}: {name}" for name in found.unexpected[:10]]
    lines += [f"  not in it: {name}; use {instead}" for name, instead in found.absent.items()]
    if found.error:
        lines.append("  error: " + found.error.replace("\n", "\n  "))
    lines += [f"  it may be: {text}" for text in found.hypotheses]
    lines.append(f"next: {found.next_step}")
    return "\n".join(lines)


def _label(name: str) -> str:
    """A layer's name whole; of one that no model has, what fits, with a sign that it is not all."""
    return name if len(name) <= _LABEL else f"…{name[1 - _LABEL :]}"


def _indented(title: str, lines: list[str]) -> list[str]:
    return [f"  {title if not number else '':<12} {line}" for number, line in enumerate(lines)]


def coverage_picture(found: Inspection) -> Image.Image:
    """Blocks across, layers down, each cell quantized, plain or missing; below, a bar for each component. RGB."""
    from PIL import Image, ImageDraw, ImageFont

    colour = {QUANTIZED: (72, 160, 120), PLAIN: (90, 130, 190), MISSING: (210, 70, 60), None: (45, 45, 48)}
    depth = max((len(row) for row in found.grid.values()), default=1)
    rows = dict(list(found.grid.items())[:_ROWS])
    bars = sorted(found.components.items())[:_COMPONENTS]
    font = ImageFont.load_default()
    labels = [_label(name).replace("…", "...") for name in (*rows, *(name for name, _ in bars))]  # the font has no "…"
    left = max(300, 20 + math.ceil(max(map(font.getlength, labels), default=0)))
    cell, line = max(2, min(14, 1400 // depth)), 18
    width = left + max(depth, 48) * cell + 20
    height = 3 * line + len(rows) * cell + line + (len(bars) + 1) * line + 10
    image = Image.new("RGB", (width, height), (28, 28, 30))
    draw = ImageDraw.Draw(image)
    white = (225, 225, 225)
    state = "complete" if found.complete else "NOT complete"
    draw.text((10, 6), f"{Path(found.path).name}: {found.model}, {state}, {found.nbytes / 1e9:.2f} GB", white, font)
    x = 10
    for key in (QUANTIZED, PLAIN, MISSING):
        draw.rectangle((x, 28, x + 10, 38), colour[key])
        draw.text((x + 15, 27), key, white, font)
        x += 100
    top = 3 * line
    for y, row in enumerate(rows.values()):
        draw.text((10, top + y * cell), labels[y], white, font)
        for i, value in enumerate(row):
            x0, y0 = left + i * cell, top + y * cell
            draw.rectangle((x0, y0, x0 + cell - 2, y0 + cell - 2), colour[value])
    top += len(rows) * cell + line
    for y, (_, part) in enumerate(bars):
        draw.text((10, top + y * line), labels[len(rows) + y], white, font)
        edge = float(left)
        for key in (QUANTIZED, PLAIN, MISSING):
            share = getattr(part, key) / part.expected * (width - left - 130)
            if share:
                draw.rectangle((edge, top + y * line, edge + max(share, 1) - 1, top + y * line + line - 5), colour[key])
            edge += share
        draw.text((width - 120, top + y * line), f"{part.expected - part.missing} of {part.expected}", white, font)
    return image
