"""The one listing of files: what lies below a folder, and which HLWQ checkpoints are among it, told by their tensors' names.

Folders of models hold whatever people put there. The listing raises for nothing that it meets, waits for nothing (only
regular files are opened), and ends: folders are entered once each, by device and inode, and depth, folders, files and the
bytes of a header are bounded. What it passes over it names, with the reason.

Opening a checkpoint or a model is the opposite: `files_of` raises where the listing would pass over, because a part that was
left out in silence is a broken model.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import HLWQError, ListingError, printable
from ..format import variants
from ..format.bounded import no_file, open_regular
from ..format.kinds import HEAD, kind_of
from ..format.safefile import refuse_other_kinds

SAFETENSORS = (".safetensors",)
_INDEX = ".safetensors.index.json"


@dataclass(frozen=True)
class Limits:
    """What a listing of one folder goes through at most.

    Attributes:
        depth: folders within folders. The hub's cache, the deepest that is usual, needs five.
        folders, entries: folders entered, and names read in all of them.
        files: safetensors files looked into.
        header: bytes of a header. That of LTX-2.3 has less than 2 MB.
    """

    depth: int = 32
    folders: int = 20_000
    entries: int = 200_000
    files: int = 10_000
    header: int = 32 << 20


LIMITS = Limits()


@dataclass(frozen=True)
class Skipped:
    """Something that was passed over, and why."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.reason}"


Skip = Callable[[str, str], None]


def _folders_below(
    root: str, endings: tuple[str, ...], skip: Skip, hidden: bool, limits: Limits
) -> Iterator[tuple[str, list[str]]]:
    """Each folder with its names that end so, sorted, what is its own before what is linked. What is linked comes last, also
    among the folders: it may lie on a drive that hangs."""
    seen: set[tuple[int, int]] = set()
    own, linked, entries = deque([(root, 0)]), deque[tuple[str, int]](), 0
    while own or linked:
        folder, depth = (own or linked).popleft()
        if depth > limits.depth:
            skip(folder, f"more than {limits.depth} folders deep: not listed")
            continue
        if len(seen) >= limits.folders or entries >= limits.entries:
            words = f"{limits.folders:,} folders" if entries < limits.entries else f"{limits.entries:,} names"
            skip(folder, f"more than {words}: the rest is not listed")
            return
        try:
            here = os.stat(folder)
            if (here.st_dev, here.st_ino) in seen:
                skip(folder, "a link to a folder that was listed already")
                continue
            seen.add((here.st_dev, here.st_ino))
            names, count = _names(folder, endings, limits.entries - entries, hidden)
        except (OSError, ValueError) as error:
            skip(folder, _why(error))
            continue
        entries += count
        if entries >= limits.entries:
            skip(folder, f"more than {limits.entries:,} names: the rest is not listed")
        files: list[str] = []
        for is_link, name, is_folder in sorted(names):
            if not _is_text(name):
                skip(os.path.join(folder, name), "its name is no valid text: rename it")
            elif is_folder:
                (linked if is_link else own).append((os.path.join(folder, name), depth + 1))
            else:
                files.append(name)
        yield folder, files


def _names(folder: str, endings: tuple[str, ...], most: int, hidden: bool) -> tuple[list[tuple[bool, str, bool]], int]:
    """The names in a folder that count, as (whether it is a link, name, whether it is a folder); and how many there were in all."""
    found: list[tuple[bool, str, bool]] = []
    count = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            count += 1
            if count >= most:
                break
            if entry.name.startswith(".") and not hidden:
                continue
            try:
                is_folder = entry.is_dir()
            except OSError:  # a link into itself
                is_folder = False
            if is_folder or entry.name.endswith(endings):
                found.append((entry.is_symlink(), entry.name, is_folder))
    return found, count


def files_below(
    root: str | os.PathLike[str],
    endings: tuple[str, ...],
    skip: Skip,
    *,
    hidden: bool = False,
    limits: Limits = LIMITS,
) -> Iterator[str]:
    """The regular files below a folder, links followed. Never raises for what lies there.

    Args:
        endings: of the names that count.
        skip: told the path and the reason of what is passed over: unreadable folders, links that lead nowhere or back, what
            is no regular file, names that are no text, and where a limit was reached.
        hidden: also what begins with a dot.
    """
    for folder, names in _folders_below(os.fspath(root), endings, skip, hidden, limits):
        for name in names:
            path = os.path.join(folder, name)
            if _regular(path, skip) is not None:
                yield path


def _regular(path: str, skip: Skip) -> os.stat_result | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        skip(path, "a link to nothing" if isinstance(error, FileNotFoundError) else _why(error))
        return None
    kind = no_file(found.st_mode)
    if kind is not None:
        skip(path, f"{kind}, no file")
        return None
    return found


def _why(error: Exception) -> str:
    return f"not readable: {getattr(error, 'strerror', None) or error}"


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def files_of(path: Path, endings: tuple[str, ...] = SAFETENSORS) -> list[Path]:
    """The files that a folder of one model consists of, sorted; hidden ones do not belong to it.

    Raises:
        ListingError: something that should belong to it cannot be listed.
    """

    def refuse(where: str, reason: str) -> None:
        if "listed already" not in reason:
            raise ListingError(
                "the folder cannot be listed whole",
                file=where,
                expected="folders that may be read, and regular files",
                found=reason,
                fix="remove or mend this one, or name the model's own folder",
            )

    return sorted(Path(file) for file in files_below(path, endings, refuse))


_OTHERS = (".gguf", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".h5", ".msgpack", ".safetensors.index.json")


def others_in(path: Path) -> str:
    """What a folder without safetensors files holds instead, for messages."""
    for file in files_below(path, _OTHERS, lambda where, reason: None):
        try:
            with open_regular(file) as opened:
                kind = kind_of(opened.read(HEAD), os.fstat(opened.fileno()).st_size)
        except (OSError, HLWQError):
            continue
        return f"{os.path.relpath(file, path)}: {kind.name if kind else 'no safetensors file'}"
    return "none"


# ---- what a file is, at a glance -------------------------------------------------------------------------------------

# Keys of a header, never values: a quote within a value is escaped, and no colon follows one that ends it.
_CODES = re.compile(rb'(?:%s)"\s{0,64}:' % b"|".join(re.escape(ending.encode()) for ending in variants.CODES))
# The first layer of a language model, under ComfyUI's names or the Hugging Face's, dotted or not.
_LANGUAGE = re.compile(rb"layers(?:\.|__)0(?:\.|__)self_attn")
_CHUNK = 1 << 20
_OVERLAP = 128


@dataclass(frozen=True)
class Glance:
    """What a file's header shows at a glance: HLWQ codes, a language model; or why it is not listed."""

    codes: bool = False
    language: bool = False
    problem: str | None = None


def glance(path: str | os.PathLike[str], limits: Limits = LIMITS) -> Glance:
    """Look for names in a file's header, without making anything of it: it may be anybody's. Never raises.

    Whether the header is sound is not asked: a damaged checkpoint is listed, so that it can be inspected.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(HEAD)
            refuse_other_kinds(Path(path), head, size)
            length = int.from_bytes(head[:8], "little")
            if head[8:9] != b"{" or length > size - 8:
                return Glance(problem="no safetensors file, or one that is cut off in its header")
            if length > limits.header:
                return Glance(
                    problem=f"a header of {length:,} bytes; more than {limits.header:,} are not looked through"
                )
            file.seek(8)
            codes = language = False
            rest, left = b"", length
            while left and (part := file.read(min(left, _CHUNK))):
                left -= len(part)
                part = rest + part
                codes = codes or _CODES.search(part) is not None
                language = language or _LANGUAGE.search(part) is not None
                rest = part[-_OVERLAP:]
            return Glance(codes, language)
    except HLWQError as error:
        return Glance(problem=error.what.removeprefix("this is "))
    except (OSError, ValueError) as error:
        return Glance(problem=_why(error))


def holds_codes(path: str | os.PathLike[str]) -> bool:
    """Whether a safetensors file holds quantized tensors; False for what cannot be read."""
    return glance(path).codes


# ---- what lies below a model folder ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listed:
    """A safetensors file below a model folder: its path, and what it holds."""

    path: str
    codes: bool
    language: bool


@dataclass(frozen=True)
class Scan:
    """What lies below one model folder.

    Attributes:
        root: the folder.
        files: safetensors files, the shallowest first.
        indexed: folders with an index of shards.
        skipped: what was passed over.
    """

    root: str
    files: tuple[Listed, ...] = ()
    indexed: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    def homes(self) -> dict[str, list[Listed]]:
        """The checkpoints: path → its files with codes. A file directly in the model folder stands for itself."""
        found: dict[str, list[Listed]] = {}
        for file in self.files:
            if file.codes:
                home = _home(file.path, self.root)
                found.setdefault(file.path if home == self.root else home, []).append(file)
        return found

    def label(self, path: str) -> str:
        """A path as the nodes' lists show it: relative to the model folder, `/` between parts."""
        return os.path.relpath(path, self.root).replace(os.sep, "/")


@dataclass
class Memory:
    """What files showed at a glance, as long as their size and time stay; of the last scan only, so it does not grow."""

    known: dict[str, tuple[tuple[int, int, int], Glance]] = field(default_factory=dict)
    next: dict[str, tuple[tuple[int, int, int], Glance]] = field(default_factory=dict)

    def glance(self, path: str, found: os.stat_result, limits: Limits) -> Glance:
        key = (found.st_size, found.st_mtime_ns, found.st_ino)
        known = self.known.get(path)
        if known is None or known[0] != key:
            known = (key, glance(path, limits))
        self.next[path] = known
        return known[1]

    def turn(self) -> None:
        self.known, self.next = self.next, {}


_SKIPPED_MOST = 1000
# Of each second after the first half, a scan leaves one half to others: whoever starts beside it shares Python's lock.
_BUSY, _SLICE = 0.5, 0.02
_AT_ONCE = 50


def scan(
    root: str | os.PathLike[str],
    memory: Memory | None = None,
    *,
    limits: Limits = LIMITS,
    told: Callable[[Scan], None] | None = None,
) -> Scan:
    """Look through a model folder. Never raises for what lies there.

    Args:
        memory: of the last scan of this folder: unchanged files are not opened again.
        told: called about four times a second with what was found so far.
    """
    root = os.path.normpath(os.fspath(root))
    memory = memory or Memory()
    files: list[Listed] = []
    indexed: list[str] = []
    skipped: list[Skipped] = []

    def skip(path: str, reason: str) -> None:
        if len(skipped) < _SKIPPED_MOST:
            skipped.append(Skipped(path, reason))

    def result() -> Scan:
        return Scan(root, tuple(files), tuple(indexed), tuple(skipped))

    def look(path: str) -> None:
        if path.endswith(_INDEX):
            indexed.append(os.path.dirname(path))
        elif (found := _regular(path, skip)) is not None:
            shown = memory.glance(path, found, limits)
            if shown.problem is not None:
                skip(path, shown.problem)
            else:
                files.append(Listed(path, shown.codes, shown.language))

    begun = slept = spoke = time.monotonic()
    for path in _in_turn(root, skip, limits) if is_folder(root) else ():
        look(path)
        now = time.monotonic()
        if told is not None and now - spoke > 0.25:
            told(result())
            spoke = now
        if now - begun > _BUSY and now - slept > _SLICE:
            time.sleep(_SLICE)
            slept = time.monotonic()
    memory.turn()
    return result()


def _in_turn(root: str, skip: Skip, limits: Limits) -> Iterator[str]:
    """The files to look into, up to the limit: some of each folder as it is met, then of each one more, so that a folder of
    ten thousand files does not leave the others out."""
    rest: list[tuple[str, list[str]]] = []

    def paths() -> Iterator[str]:
        for folder, names in _folders_below(root, (*SAFETENSORS, _INDEX), skip, False, limits):
            for name in names[:_AT_ONCE]:
                yield os.path.join(folder, name)
            if len(names) > _AT_ONCE:
                rest.append((folder, names[_AT_ONCE:]))
        for number in range(max((len(names) for _, names in rest), default=0)):
            for folder, names in rest:
                if len(names) > number:
                    yield os.path.join(folder, names[number])

    for number, path in enumerate(paths()):
        if number == limits.files:
            skip(path, f"more than {limits.files:,} files: the rest is not listed")
            return
        yield path


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder; False for what cannot be asked."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def find_checkpoints(roots: Iterable[str | os.PathLike[str]]) -> dict[str, Path]:
    """Checkpoints below some folders.

    A folder counts when a safetensors file in it, in `polarquant/codes/` and the like, holds codes; a file that holds
    codes beside other models is a checkpoint of its own. Unreadable files are passed over.

    Args:
        roots: folders to look in.

    Returns:
        Label (path relative to the root, `/` between parts) → path, sorted by label; the first root wins a label.
    """
    found: dict[str, Path] = {}
    for listed in map(scan, roots):
        for path in listed.homes():
            found.setdefault(listed.label(path), Path(path))
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _home(path: str, root: str) -> str:
    """The checkpoint's folder: above `polarquant/codes`, `codes` and the like, but below the root."""
    folder = os.path.dirname(path)
    for names in (("codes", "bf16"), ("polarquant", "hlwq")):
        above = os.path.dirname(folder)
        if os.path.basename(folder) in names and root not in (folder, above):
            folder = above
    return folder
