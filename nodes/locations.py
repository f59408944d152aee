"""Where models are: ComfyUI's model folders, `models/hlwq` among them, and nothing outside of them.

ComfyUI reads `extra_model_paths.yaml` before custom nodes, so folders named there (under `hlwq`, `checkpoints`,
`diffusion_models`, `latent_upscale_models`) are searched as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..hlwq_core.checkpoints.find import find_checkpoints
from ..hlwq_core.errors import InputError
from .compat import folder_paths

CHECKPOINT_FOLDERS = ("hlwq", "checkpoints", "diffusion_models")
UPSCALER_FOLDER = "latent_upscale_models"


def register() -> None:
    """Make `models/hlwq` one of ComfyUI's model folders."""
    folder_paths.add_model_folder_path("hlwq", os.path.join(folder_paths.models_dir, "hlwq"))


def roots(*names: str) -> list[Path]:
    """The existing folders of ComfyUI's model types, in its order, each once."""
    found = [Path(path) for name in names for path in folder_paths.get_folder_paths(name)]
    return [path for path in dict.fromkeys(found) if path.is_dir()]


def checkpoints() -> dict[str, Path]:
    """HLWQ checkpoints in the model folders, by the label that the nodes' lists show."""
    return find_checkpoints(roots(*CHECKPOINT_FOLDERS))


def checkpoint(label: str) -> Path:
    """The folder or file of a checkpoint.

    Raises:
        InputError: no such checkpoint in the model folders.
    """
    known = checkpoints()
    if label in known:
        return known[label]
    # A folder that is there and is no checkpoint: opening it says what is wrong with it.
    return _inside(label, CHECKPOINT_FOLDERS, "checkpoint", known)


def upscalers() -> dict[str, Path]:
    """Latent upscalers of `models/latent_upscale_models` and of the checkpoints' own `upscalers/`, by label.

    A label is the file's name; where two files share it, the later ones are called `<checkpoint>/upscalers/<name>`.
    """
    found: dict[str, Path] = {}
    for root in roots(UPSCALER_FOLDER):
        for path in sorted(root.rglob("*.safetensors")):
            found.setdefault(path.relative_to(root).as_posix(), path)
    for label, folder in checkpoints().items():
        if folder.is_dir():
            for path in sorted((folder / "upscalers").glob("*.safetensors")):
                found[f"{label}/upscalers/{path.name}" if path.name in found else path.name] = path
    return found


def upscaler(label: str) -> Path:
    """The file of a latent upscaler; also by its full label where the short one is enough.

    Raises:
        InputError: no such file in the model folders.
    """
    known = upscalers()
    if label in known:
        return known[label]
    return _inside(label, (UPSCALER_FOLDER, *CHECKPOINT_FOLDERS), "upscaler", known)


def _inside(label: str, folders: Iterable[str], kind: str, known: Iterable[str]) -> Path:
    """`label` as a path below one of the model folders."""
    for flavour in (PurePosixPath(label), PureWindowsPath(label)):
        if flavour.is_absolute() or flavour.drive or ".." in flavour.parts:
            raise InputError(
                f"the {kind}'s path leaves the model folders",
                found=label,
                expected=f"a path below {', '.join(f'models/{name}' for name in folders)}",
                fix="move or link the files there, or name their folder in extra_model_paths.yaml",
            )
    for root in roots(*folders):
        if label.strip("./\\ ") and (root / label).exists():
            return root / label
    listed = sorted(known)
    raise InputError(
        f"there is no such {kind} in the model folders",
        found=label or "nothing chosen",
        expected=f"one of: {', '.join(listed)}" if listed else f"any {kind}; none was found",
        fix=f"put it under {' or '.join(f'models/{name}' for name in folders)} and refresh (R)",
    )


register()
