"""Jobs out of a file: prompts as text, CSV or JSON lines, or a folder of pictures; seeds as ranges.

Text has a prompt on each line; lines that begin with # are left out. CSV has a first line with the columns, JSON lines have an
object on each line. A column is an option of `generate` (prompt, seed, width, image, lora, ...), `name` (of the output), or
`Title.input` of the workflow. Paths are relative to the file.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..client import graph
from ..client.generate import Request, build, workflow_path
from ..errors import HLWQError, InputError
from ..format.bounded import parse_json, read_bytes
from ..format.portable import why_not
from .job import LONGEST, Identities, Job, check_names, default_name, with_seed

LIMIT = 256 << 20
MOST = 1_000_000
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_SPAN = re.compile(r"(\d+)\s*(?:-|\.\.|:)\s*(\d+)")
_PATHS = ("image", "audio", "workflow")
_UPSCALES = ("none", "spatial", "temporal")


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST:
        raise ValueError(f"text of at most {LONGEST:,} characters")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"\s*[-+]?\d{1,30}\s*", value):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if type(value) is not int:
        raise ValueError("a whole number")
    return value


def _number(value: Any) -> float:
    try:
        number = float(value) if type(value) in (str, int, float) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("a number")
    return number


def _upscale(value: Any) -> str:
    if value not in _UPSCALES:
        raise ValueError(" or ".join(_UPSCALES))
    return str(value)


def lora(text: str) -> tuple[str, float]:
    """`NAME` or `NAME:STRENGTH`."""
    name, colon, strength = text.rpartition(":")
    if colon:
        try:
            return name, float(strength)
        except ValueError:
            pass
    return text, 1.0


def _loras(value: Any) -> list[tuple[str, float]]:
    given = value.split(";") if isinstance(value, str) else value
    if not isinstance(given, list) or not all(isinstance(item, str) for item in given):
        raise ValueError("NAME or NAME:STRENGTH, several with ; between them")
    return [lora(item.strip()) for item in given if item.strip()]


def seeds(value: Any) -> list[int]:
    """Seeds: `7`, `1-10`, `1,5,20-22`, or in JSON a list of such.

    Raises:
        ValueError: it is none of these; says what was expected.
    """
    parts = value if isinstance(value, list) else value.split(",") if isinstance(value, str) else [value]
    found: list[int] = []
    for part in parts:
        span = _SPAN.fullmatch(part.strip()) if isinstance(part, str) else None
        if span is not None:
            first, last = int(span[1][:30]), int(span[2][:30])
            if not 0 <= last - first < MOST:
                raise ValueError(f"a range of at most {MOST:,} seeds, the smaller one first")
            found += range(first, last + 1)
        else:
            found.append(_whole(part))
    if not found or not all(0 <= seed < 2**64 for seed in found):
        raise ValueError("seeds from 0 to 2**64 - 1: 7, or 1-10, or 1,5,20-22")
    return found


_COLUMNS: dict[str, Callable[[Any], Any]] = {
    "prompt": _text,
    "negative": _text,
    "checkpoint": _text,
    "text_encoder": _text,
    "width": _whole,
    "height": _whole,
    "frames": _whole,
    "seconds": _number,
    "fps": _number,
    "steps": _whole,
    "image": _text,
    "audio": _text,
    "workflow": _text,
    "lora": _loras,
    "upscale": _upscale,
    "seed": seeds,
    "name": _text,
}


@dataclass
class Row:
    """What one job of the file says.

    Attributes:
        values: by column, what was left out is not there.
        where: for errors.
    """

    values: dict[str, Any]
    where: str


def read_jobs(path: Path, base: Request, seed: Sequence[int] = ()) -> list[Job]:
    """The jobs of a file or folder.

    Args:
        path: `.csv`, `.jsonl` (or `.ndjson`), a folder of pictures; whatever else is text with a prompt a line.
        base: what holds for every job that does not say otherwise.
        seed: seeds with which each job without one is made; none: one that follows from the job.

    Raises:
        InputError: a line is not what it should be, named with its number; or there is no job.
    """
    rows = list(_rows(path))
    if not rows:
        raise InputError(
            "there is no job in this",
            file=path,
            expected="pictures: " + ", ".join(PICTURES) if path.is_dir() else "a prompt a line, CSV, or JSON lines",
            found="an empty folder" if path.is_dir() else "no line that says something",
            fix="docs/batch.md shows the forms",
        )
    folder = path if path.is_dir() else path.parent
    titles = _Titles()
    identities = Identities()
    jobs: list[Job] = []
    for row in rows:
        for request, written, name in _requests(row, base, seed, folder, path, titles):
            if len(jobs) >= MOST:
                raise InputError(
                    "these are too many jobs",
                    file=path,
                    expected=f"at most {MOST:,}",
                    found="more",
                    fix="split the file",
                )
            identity = identities.give(request, written)
            request = with_seed(request, identity)
            jobs.append(Job(request, name or default_name(request, identity), request.prompt or name, identity))
    twice = check_names(jobs)
    if twice is not None:
        raise InputError(
            "two jobs have one name for their output",
            file=path,
            expected="a name for each",
            found=twice.name,
            fix="correct the column name, or leave it out",
        )
    return jobs


def check_jobs(jobs: Sequence[Job]) -> None:
    """Refuse what can be refused without a server: each way of asking once, since thousands of jobs ask for the same in
    other words.

    Raises:
        HLWQError: what is wrong, and in which job.
    """
    seen: set[tuple[Any, ...]] = set()
    for job in jobs:
        asked = job.request
        key = tuple(
            (name, str(value))
            for name, value in vars(asked).items()
            if name not in ("prompt", "negative", "seed", "image")
        )
        if key in seen and (asked.image is None or asked.image.is_file()):
            continue
        seen.add(key)
        try:
            for path in (asked.image, asked.audio):
                if path is not None and not path.is_file():
                    raise InputError("there is no such file", file=path, fix="correct the path")
            build(asked)
        except HLWQError as error:
            error.what = f"job {job.name}: {error.what}"
            error.args = (str(error),)
            raise


def _rows(path: Path) -> Iterator[Row]:
    if path.is_dir():
        yield from _pictures(path)
        return
    ending = path.suffix.lower()
    try:
        text = read_bytes(path, "a file of jobs", LIMIT).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            "the jobs cannot be read",
            file=path,
            expected="text in UTF-8",
            found=f"other bytes from {error.start:,} on",
            fix="save the file as UTF-8",
        ) from None
    if ending == ".csv":
        yield from _csv(path, text)
    elif ending in (".jsonl", ".ndjson"):
        yield from _json_lines(path, text)
    else:
        for number, line in _lines(text):
            if line.strip() and not line.startswith("#"):
                yield Row({"prompt": line.strip()}, f"line {number:,}")


def _lines(text: str) -> Iterator[tuple[int, str]]:
    # Of str.splitlines' ends of lines, some stand within texts.
    return enumerate(re.split(r"\r\n|\n|\r", text), 1)


def _csv(path: Path, text: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            where = f"line {reader.line_num:,}"
            if columns is None:
                columns = [_column(cell) for cell in cells]
                twice = {column for column in columns if columns.count(column) > 1}
                if twice or not all(columns):
                    raise InputError(
                        "the first line does not name the columns",
                        file=path,
                        expected="a name for each column, such as prompt,seed,width",
                        found=f"{sorted(twice)[0] or 'no name'} twice" if twice else "a column without a name",
                        fix="put the names of the columns into the first line",
                    )
                continue
            if any(cell.strip() for cell in cells[len(columns) :]):
                raise InputError(
                    f"{where} has more cells than the first has columns",
                    file=path,
                    expected=f"{len(columns)} cells",
                    found=f"{len(cells)}",
                    fix="put texts with commas into quotation marks",
                )
            yield Row({c: cell.strip() for c, cell in zip(columns, cells) if cell.strip()}, where)
    except csv.Error as error:
        raise InputError(
            "this is no CSV",
            file=path,
            expected="cells with commas between them, texts with commas in quotation marks",
            found=f"line {reader.line_num:,}: {error}",
            fix="correct the line",
        ) from None


def _json_lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in _lines(text):
        if not line.strip():
            continue
        values = parse_json(line, f"line {number:,}", path, InputError)
        if not isinstance(values, dict):
            raise InputError(
                f"line {number:,} is no job",
                file=path,
                expected='an object: {"prompt": "...", "seed": 7}',
                found=type(values).__name__,
                fix="correct the line",
            )
        yield Row({_column(key): value for key, value in values.items() if value is not None}, f"line {number:,}")


def _pictures(folder: Path) -> Iterator[Row]:
    """A job a picture; a text file of the same name beside it is its prompt."""
    try:
        found = sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES and p.is_file())
    except OSError as error:
        raise InputError(
            "the folder cannot be read",
            file=folder,
            expected="a folder of pictures",
            found=error.strerror or error,
            fix="correct the path",
        ) from error
    for path in found:
        values: dict[str, Any] = {"image": path.name, "name": path.stem}
        beside = path.with_suffix(".txt")
        if beside.is_file():
            values["prompt"] = read_bytes(beside, "a prompt", 1 << 20).decode("utf-8-sig", "replace").strip()
        yield Row(values, path.name)


def _column(name: str) -> str:
    name = name.strip()
    plain = name.lower().lstrip("-").replace("-", "_")
    plain = {"loras": "lora", "seeds": "seed"}.get(plain, plain)
    return plain if plain in _COLUMNS else name


class _Titles:
    """What `Title.input` a workflow has; each is read once."""

    def __init__(self) -> None:
        self._known: dict[Path, graph.Nodes] = {}

    def check(self, path: Path, setting: str) -> None:
        if path not in self._known:
            self._known[path] = graph.load(path)
        # The server may know inputs that the file leaves out: those are looked at when it is asked.
        nodes = {i: {**node, "inputs": dict(node["inputs"])} for i, node in self._known[path].items()}
        graph.assign(nodes, setting, lenient=True)


def _requests(
    row: Row, base: Request, seed: Sequence[int], folder: Path, path: Path, titles: _Titles
) -> Iterator[tuple[Request, dict[str, str], str]]:
    """The requests of a row, one a seed: with the paths as they were written, and the name that the user gave."""
    changes: dict[str, Any] = {}
    settings: list[str] = []
    written: dict[str, str] = {}
    own_seeds: list[int] = []
    name = ""
    for column, value in row.values.items():
        if column not in _COLUMNS:
            if "." not in column:
                raise _unknown(column, row, path)
            settings.append(f"{column}={_cell(value)}")
            continue
        try:
            read = _COLUMNS[column](value)
        except ValueError as error:
            raise InputError(
                f"{row.where}: {column} does not fit", file=path, expected=error, found=value, fix="correct the line"
            ) from None
        if column in _PATHS:
            written[column] = read
            changes[column] = folder / Path(read).expanduser()
        elif column == "seed":
            own_seeds = read
        elif column == "name":
            name = read
            why = "it begins with a dot" if name.startswith(".") else why_not(name + ".mp4")
            if why is not None:
                raise InputError(
                    f"{row.where}: this is no name for a file",
                    file=path,
                    expected=why,
                    found=name,
                    fix="choose another",
                )
        else:
            changes["loras" if column == "lora" else column] = read
    request = replace(base, **changes, settings=[*base.settings, *settings])
    for setting in settings:
        try:
            titles.check(workflow_path(request), setting)
        except InputError as error:
            error.what = f"{row.where}: {error.what}"
            error.args = (str(error),)
            raise
    several = own_seeds or list(seed)
    if len(several) <= 1:
        yield (replace(request, seed=several[0]) if several else request), written, name
        return
    for one in several:
        yield replace(request, seed=one), written, f"{name}_seed{one}" if name else ""


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)):
        return str(value)
    return json.dumps(value)


def _unknown(column: str, row: Row, path: Path) -> InputError:
    close = difflib.get_close_matches(column.lower(), _COLUMNS, 1)
    return InputError(
        f"{row.where}: there is no column {column!r}",
        file=path,
        expected=", ".join(_COLUMNS) + ", or Title.input of the workflow",
        found=column,
        fix=f"is {close[0]} meant?" if close else "correct the name of the column",
    )
