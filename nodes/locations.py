"""Where models are: ComfyUI's model folders, `models/hlwq` among them, and nothing outside of them.

ComfyUI reads `extra_model_paths.yaml` before custom nodes, so folders named there (under `hlwq`, `checkpoints`,
`diffusion_models`, `latent_upscale_models`) are searched as well.

`checkpoints()` and its like look at the folders now; with `now=False` they give what `listing` has kept, which is all that
may be asked for in ComfyUI's event loop.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..hlwq_core.checkpoints.find import Scan
from ..hlwq_core.errors import HLWQError, InputError
from ..hlwq_core.models import ltx23
from . import listing
from .compat import folder_paths

CHECKPOINT_FOLDERS = ("hlwq", "checkpoints", "diffusion_models")
CALIBRATION_FOLDER = "calibration"  # in models/hlwq
UPSCALER_FOLDER = "latent_upscale_models"
TEXT_ENCODER_FOLDER = "text_encoders"
DENSE_FOLDERS = ("checkpoints", "diffusion_models", "text_encoders")
# What a list shows of one folder at most; a path that it leaves out can still be given by name.
_LONGEST = 5_000
# What an error lists of what is there.
_NAMED = 12

GEMMA_FILES = ltx23.ENCODER.files

Labelled = Mapping[str, Path]


def register() -> None:
    """Make `models/hlwq` one of ComfyUI's model folders."""
    folder_paths.add_model_folder_path("hlwq", os.path.join(folder_paths.models_dir, "hlwq"))


def roots(*names: str) -> list[str]:
    """The folders of ComfyUI's model types, in its order, each once, whether they are there or not."""
    return list(dict.fromkeys(os.path.normpath(path) for name in names for path in _paths(name)))


def _paths(name: str) -> list[str]:
    try:
        return list(folder_paths.get_folder_paths(name))
    except KeyError:  # a ComfyUI without this kind of model
        return []


def _list(key: str, kinds: tuple[str, ...], make: Callable[[tuple[Scan, ...]], Labelled], now: bool) -> Labelled:
    folders = (listing.fresh if now else listing.kept)(roots(*kinds))
    return listing.derive(key, folders, make)


def _sorted(found: Mapping[str, str]) -> Labelled:
    return {label: Path(path) for label, path in sorted(found.items(), key=lambda item: item[0].lower())}


def checkpoints(*, now: bool = True) -> Labelled:
    """HLWQ checkpoints in the model folders, by the label that the nodes' lists show."""

    def make(scans: tuple[Scan, ...]) -> Labelled:
        return _sorted({scan.label(path): path for scan in reversed(scans) for path in scan.homes()})

    return _list("checkpoints", CHECKPOINT_FOLDERS, make, now)


def text_encoders(*, now: bool = True) -> Labelled:
    """Files of `models/text_encoders`, and HLWQ folders there or, of language models, in `models/hlwq`, by label."""
    own = len(roots(TEXT_ENCODER_FOLDER))

    def make(scans: tuple[Scan, ...]) -> Labelled:
        found: dict[str, str] = {}
        for number, scan in enumerate(scans):
            homes = scan.homes()
            if number < own:
                plain = [file.path for file in scan.files if not any(_is_below(file.path, home) for home in homes)]
                for path in (*homes, *plain[:_LONGEST]):
                    found.setdefault(scan.label(path), path)
            else:
                # A folder may hold a video model with its text encoder: any file of it tells.
                for home in homes:
                    if any(file.language for file in scan.files if file.path == home or _is_below(file.path, home)):
                        found.setdefault(scan.label(home), home)
        return _sorted(found)

    return _list("text encoders", (TEXT_ENCODER_FOLDER, "hlwq"), make, now)


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(folder + os.sep)


def dense_models(*, now: bool = True) -> Labelled:
    """Dense models in the model folders: files, and folders with an index of shards, by `folder/path`."""
    kinds = [(kind, root) for kind in DENSE_FOLDERS for root in roots(kind)]

    def make(scans: tuple[Scan, ...]) -> Labelled:
        by_root = {scan.root: scan for scan in scans}
        found: dict[str, Path] = {}
        for kind, root in kinds:
            scan = by_root[root]
            for folder in scan.indexed:
                found.setdefault(f"{kind}/{scan.label(folder)}", Path(folder))
            shards = set(scan.indexed)
            plain = [file.path for file in scan.files if not file.codes and os.path.dirname(file.path) not in shards]
            for path in sorted(plain[:_LONGEST]):
                found.setdefault(f"{kind}/{scan.label(path)}", Path(path))
        return found

    return _list("dense models", DENSE_FOLDERS, make, now)


def upscalers(*, now: bool = True) -> Labelled:
    """Latent upscalers of `models/latent_upscale_models` and of the checkpoints' own `upscalers/`, by label.

    A label is the file's name; where two files share it, the later ones are called `<checkpoint>/upscalers/<name>`.
    """
    own = len(roots(UPSCALER_FOLDER))

    def make(scans: tuple[Scan, ...]) -> Labelled:
        found: dict[str, Path] = {}
        for scan in scans[:own]:
            for path in sorted(file.path for file in scan.files[:_LONGEST]):
                found.setdefault(scan.label(path), Path(path))
        beside: dict[str, str] = {}
        for scan in scans[own:]:
            homes = {os.path.join(home, "upscalers"): scan.label(home) for home in scan.homes()}
            for file in scan.files:
                folder, name = os.path.split(file.path)
                if folder in homes:
                    beside.setdefault(f"{homes[folder]}/upscalers/{name}", file.path)
        for label, path in sorted(beside.items(), key=lambda item: item[0].lower()):
            name = os.path.basename(path)
            found[label if name in found else name] = Path(path)
        return found

    return _list("upscalers", (UPSCALER_FOLDER, *CHECKPOINT_FOLDERS), make, now)


def calibrations(*, now: bool = True) -> Labelled:
    """The files that HLWQ Calibrate and the command `calibrate` made, by label."""

    def make(scans: tuple[Scan, ...]) -> Labelled:
        inside = {os.path.join(scan.root, CALIBRATION_FOLDER): scan for scan in reversed(scans)}
        return _sorted(
            {
                os.path.basename(file.path): file.path
                for folder, scan in inside.items()
                for file in scan.files
                if os.path.dirname(file.path) == folder
            }
        )

    return _list("calibrations", ("hlwq",), make, now)


def calibration(label: str) -> Path:
    """The file of a calibration.

    Raises:
        InputError: no such file.
    """
    return _resolve(label, ("hlwq",), "calibration", calibrations, f"{CALIBRATION_FOLDER}/{label}")


def new_calibration(name: str) -> Path:
    """Where a calibration of this name lies, whether it is there or not.

    Raises:
        InputError: the name is none for a file.
    """
    return Path(roots("hlwq")[0]) / CALIBRATION_FOLDER / f"{plain_name(name, 'calibration')}.safetensors"


def plain_name(name: str, what: str) -> str:
    """A name for something new, without folder and ending.

    Raises:
        InputError: it is none.
    """
    bare = name.strip().removesuffix(".safetensors")
    if not re.fullmatch(r"[\w][\w.+ -]*", bare) or bare.endswith("."):
        raise InputError(
            f"this is no name for a {what}",
            expected="letters, digits, spaces and . + - _",
            found=repr(name),
            fix=f"give a name without folders; the {what} will lie under models/hlwq",
        )
    return bare


def checkpoint(label: str) -> Path:
    """The folder or file of a checkpoint.

    Raises:
        InputError: no such checkpoint in the model folders.
    """
    # A folder that is there and is no checkpoint: opening it says what is wrong with it.
    return _resolve(label, CHECKPOINT_FOLDERS, "checkpoint", checkpoints)


def upscaler(label: str) -> Path:
    """The file of a latent upscaler; also by its full label where the short one is enough.

    Raises:
        InputError: no such file in the model folders.
    """
    return _resolve(label, (UPSCALER_FOLDER, *CHECKPOINT_FOLDERS), "upscaler", upscalers)


def text_encoder(label: str) -> Path:
    """The file or folder of a text encoder.

    Raises:
        InputError: no such file or folder in the model folders.
    """
    return _resolve(label, (TEXT_ENCODER_FOLDER, "hlwq"), "text encoder", text_encoders)


def dense_model(label: str) -> Path:
    """The file or folder of a dense model, by `folder/path`.

    Raises:
        InputError: no such model in the model folders.
    """
    kind, _, rest = label.partition("/")
    if kind in DENSE_FOLDERS:
        return _resolve(label, (kind,), "model", dense_models, rest)
    return _resolve(label, DENSE_FOLDERS, "model", dense_models, "")


def refusal(*named: tuple[Callable[[str], Path], str | None]) -> bool | str:
    """What a node's `validate_inputs` answers to labels, each with what finds it; None stands for one that is linked."""
    try:
        for find, label in named:
            if label is not None:
                find(label)
    except HLWQError as error:
        return str(error)
    return True


def _resolve(
    label: str, kinds: tuple[str, ...], what: str, listed: Callable[..., Labelled], inside: str | None = None
) -> Path:
    """The path of a label: of the list as it is kept, else as a path below a model folder, else of the folders as they are now."""
    inside = label if inside is None else inside
    known = listed(now=False)
    if label in known:
        return known[label]
    if _leaves(inside):
        raise InputError(
            f"the {what}'s path leaves the model folders: there is no such {what} in the model folders",
            found=label,
            expected=f"a path below {', '.join(f'models/{name}' for name in kinds)}",
            fix="move or link the files there, or name their folder in extra_model_paths.yaml",
        )
    if inside.strip("./\\ "):
        for root in filter(listing.answers, map(Path, roots(*kinds))):
            if os.path.exists(root / inside):
                return root / inside
    known = listed()
    if label in known:
        return known[label]
    names = list(known)
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    where = " or ".join(f"models/{name}" for name in kinds)
    raise InputError(
        f"the workflow asks for the {what} {label or '(nothing chosen)'}; your folders hold "
        f"{', '.join(names[:_NAMED]) + more if names else f'no {what}'}",
        fix=f"{'choose one of those, or ' if names else ''}put {GEMMA_FILES if what == 'text encoder' else 'it'} under "
        f"{where} and refresh (R)" + ("; HLWQ Download fetches the published ones" if what == "checkpoint" else ""),
    )


def _leaves(path: str) -> bool:
    """Whether a path leads out of a folder, on any system."""
    flavours = (PurePosixPath(path), PureWindowsPath(path))
    return any(p.is_absolute() or bool(p.drive) or ".." in p.parts for p in flavours)


register()
