"""Where ComfyUI is: the program to start, and the folder whose models/ and custom_nodes/ belong to this pack."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from .errors import InputError

PACK = Path(__file__).absolute().parents[1]


def program(given: str | os.PathLike[str] | None = None) -> Path:
    """The folder of ComfyUI's main.py: `given`, else COMFYUI_PATH, else the one whose custom_nodes this pack lies in.

    Raises:
        InputError: the folder that was named is no ComfyUI, or none was named and the pack lies in none.
    """
    named = given or os.environ.get("COMFYUI_PATH")
    if named:
        path = Path(named).expanduser().absolute()
        if not _is_program(path):
            raise InputError(
                "this folder is not a ComfyUI",
                file=path,
                expected="a folder with main.py, nodes.py and comfy/",
                fix="give the folder of ComfyUI to --comfyui or COMFYUI_PATH",
            )
        return path
    for root in _around():
        if _is_program(root):
            return root
    raise InputError(
        "no ComfyUI to work with",
        fix="start one and add `--server http://127.0.0.1:8188`, or give its folder (`--comfyui PATH` or the "
        "variable COMFYUI_PATH) and one is started for the call",
    )


def base() -> Path:
    """The folder of ComfyUI's models/: COMFYUI_PATH, else the one whose custom_nodes this pack lies in. That need not be where
    the program is: ComfyUI Desktop keeps them apart.

    Raises:
        InputError: there is none, or COMFYUI_PATH has no models/.
    """
    named = os.environ.get("COMFYUI_PATH")
    roots = [Path(named).expanduser().absolute()] if named else list(_around())
    for root in roots:
        if (root / "models").is_dir():
            return root
    raise InputError(
        "no ComfyUI is known whose model folders could be used",
        file=roots[0] if named else None,
        expected="a folder with models/ in COMFYUI_PATH" if named else "this pack in the custom_nodes of a ComfyUI",
        found="no models/ in it" if named else f"the pack in {PACK.parent}",
        fix="name a folder: --to ComfyUI/models/hlwq/NAME, or set COMFYUI_PATH to ComfyUI's folder",
    )


def _is_program(path: Path) -> bool:
    return (path / "main.py").is_file() and (path / "nodes.py").is_file() and (path / "comfy").is_dir()


def _around() -> Iterator[Path]:
    """Folders whose custom_nodes hold this pack. A pack that is linked there lies somewhere else as well, and a program that
    was started inside the link is told only in PWD which way the user went."""
    ways = [PACK, PACK.resolve()]
    there = os.environ.get("PWD", "")
    if there and os.path.isdir(there) and os.path.samefile(there, os.curdir):
        ways += [way for way in (Path(there), *Path(there).parents) if way.resolve() == PACK.resolve()]
    for way in ways:
        if way.parent.name == "custom_nodes":
            yield way.parent.parent
