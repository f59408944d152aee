"""Finding HLWQ checkpoints under ComfyUI's model folders, by their tensors' names."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import HLWQError
from ..format import variants
from ..format.safefile import read_header


def find_checkpoints(roots: Iterable[str | os.PathLike[str]]) -> dict[str, Path]:
    """Checkpoints below some folders.

    A folder counts when a safetensors file in it, in `polarquant/codes/` and the like, holds codes; a file that holds
    codes beside other models is a checkpoint of its own. Unreadable files are passed over.

    Args:
        roots: folders to look in, as deep as they go.

    Returns:
        Label (path relative to the root, `/` between parts) → path, sorted by label; the first root wins a label.
    """
    found: dict[str, Path] = {}
    for root in map(Path, roots):
        if not root.is_dir():
            continue
        for path in _below(root):
            label = path.relative_to(root).as_posix()
            found.setdefault(label, path)
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _below(root: Path) -> list[Path]:
    holders: dict[Path, list[Path]] = {}
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(folder, name)
            if name.endswith(".safetensors") and not name.startswith(".") and holds_codes(path):
                holders.setdefault(_home(path, root), []).append(path)
    checkpoints: list[Path] = []
    for home, files in holders.items():
        # Directly in a model folder each file stands for itself; a folder of its own is one checkpoint.
        checkpoints += files if home == root else [home]
    return checkpoints


def _home(path: Path, root: Path) -> Path:
    """The checkpoint's folder: above `polarquant/codes`, `codes` and the like, but below the root."""
    folder = path.parent
    for names in (("codes", "bf16"), ("polarquant", "hlwq")):
        if folder.name in names and folder != root and folder.parent != root:
            folder = folder.parent
    return folder


def holds_codes(path: Path) -> bool:
    """Whether a safetensors file holds quantized tensors; False for what cannot be read."""
    try:
        stat = path.stat()
    except OSError:
        return False
    return _holds_codes(str(path), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _holds_codes(path: str, size: int, mtime_ns: int) -> bool:
    try:
        entries, _ = read_header(path)
    except HLWQError:
        return False
    return variants.holds_codes(entries)
