"""Whether this ComfyUI still is what the pack relies on: `table.py` compared with it at start, and what is off where it is not.

ComfyUI promises `comfy_api.latest`; all else may be renamed any day, and an AttributeError in the middle of a prompt helps
nobody. So each private name is known by what needs it: what moved switches off just that, in one line of the log and of the
loader's report. Without what nothing works, the nodes refuse before they run.
"""

from __future__ import annotations

import dis
import enum
import functools
import importlib
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any

from ...hlwq_core.errors import UnsupportedError

FIX = "update ComfyUI-HLWQ; if it is the newest, please report this, and go back to a ComfyUI that it was tested with"


class Feature(enum.Enum):
    """What may be off; the text says the effect on the user."""

    LOADING = "HLWQ checkpoints cannot be loaded"
    TEXT_ENCODER = "HLWQ Load Text Encoder cannot load"
    GEMMA_4 = "Gemma 4 text encoders cannot be loaded"
    UPSCALERS = "HLWQ Load Upscaler and HLWQ Upscale Latent cannot be used"
    LORA = "LoRAs and other patches of packed weights are refused"
    SAVING = "models with packed weights cannot be saved"
    FAST_PATH = "layers take ComfyUI's own way to their weights, which is slower"
    FROM_FILES = "ComfyUI reads weights by way of memory"
    FIRST_LOAD = "ComfyUI loads layer by layer"
    STILL_LOADED = "each sampling run goes through all layers first"
    KEPT_DECODED = "decoded layers are not kept"
    RECORDINGS = "blocks are not recorded"
    FEWER_PASSES = "fast mode's blocks run in all their passes"
    FASTER_ATTENTION = "models attend as ComfyUI does"
    CALIBRATING = "HLWQ Calibrate cannot be used"
    SEVERAL_GPUS = "HLWQ Several GPUs cannot be used"
    DECODING = "HLWQ Decode + Save cannot be used"
    ORIGIN = "requests of other sites' pages are told by their hosts alone"
    METADATA = "saved videos carry no workflow"


@dataclass(frozen=True)
class Name:
    """One private name, and how the pack uses it.

    Attributes:
        path: `module.name` or `module.Class.name`.
        features: what needs it.
        call: the arguments that it is given, `a, b, c=`: that many by position, these by name.
        parameters: all that it has, exactly: it is overridden, or stood in for.
        mentions: attributes, variables and keys that its code has (a class: any of its methods).
        sets: all attributes that this constructor sets, exactly: one of ours goes round it.
        otherwise: what does as well.
    """

    path: str
    features: tuple[Feature, ...]
    call: str | None = None
    parameters: str | None = None
    mentions: str = ""
    sets: str | None = None
    otherwise: Name | None = None


@dataclass(frozen=True)
class Moved:
    """A name that is not what it was."""

    name: Name
    what: str

    def __str__(self) -> str:
        return f"{self.name.path} {self.what}"


Import = Callable[[str], Any]


def find(path: str, load: Import = importlib.import_module) -> Any:
    """What a path stands for.

    Raises:
        LookupError: there is no such thing.
    """
    parts = path.split(".")
    for split in range(len(parts) - 1, 0, -1):
        try:
            found = load(".".join(parts[:split]))
        except ImportError:
            continue
        try:
            return functools.reduce(getattr, parts[split:], found)
        except AttributeError:
            break
    raise LookupError(path)


def compare(table: Iterable[Name], load: Import = importlib.import_module) -> list[Moved]:
    """Every name of the table that is not in ComfyUI as the table has it."""
    return [Moved(name, what) for name in table if (what := difference(name, load)) is not None]


def difference(name: Name, load: Import = importlib.import_module) -> str | None:
    """What is not as it was; None if all is."""
    try:
        found = find(name.path, load)
        what = _parameters(name, found) or _words(name, found) or _attributes(name, found)
    except LookupError:
        what = "is gone"
    except (TypeError, ValueError) as error:  # no Python function any more
        what = f"is something else: {error}"
    if what is not None and name.otherwise is not None and difference(name.otherwise, load) is None:
        return None
    return what


def _parameters(name: Name, found: Any) -> str | None:
    if name.call is None and name.parameters is None:
        return None
    signature = inspect.signature(found)
    if name.parameters is not None:
        has = " ".join(parameter for parameter in signature.parameters if parameter != "self")
        return None if has == name.parameters else f"takes ({has}), not ({name.parameters})"
    given = [argument.strip() for argument in (name.call or "").split(",") if argument.strip()]
    by_name = {argument.rstrip("=") for argument in given if argument.endswith("=")}
    try:
        signature.bind(*given[: len(given) - len(by_name)], **dict.fromkeys(by_name))
    except TypeError as error:
        return f"cannot be called as ({name.call}): {error}"
    return None


def _words(name: Name, found: Any) -> str | None:
    if not name.mentions:
        return None
    words = {word for code in _codes(found) for word in _words_of(code)}
    for kind in _kinds(found):
        words.update((*vars(kind), *vars(kind).get("__annotations__", ())))
    missing = [word for word in name.mentions.split() if word not in words]
    return f"has no {', '.join(missing)} any more" if missing else None


def mentions(found: Any, word: str) -> bool:
    """Whether the code of a function or of a class's methods, inherited ones too, has a word."""
    return any(word in _words_of(code) for kind in _kinds(found) or [found] for code in _codes(kind))


def _attributes(name: Name, found: Any) -> str | None:
    if name.sets is None:
        return None
    stored = {step.argval for step in dis.get_instructions(inspect.unwrap(found)) if step.opname == "STORE_ATTR"}
    expected = set(name.sets.split())
    if stored == expected:
        return None
    differing = ", ".join(sorted(stored ^ expected))
    return f"sets other attributes than it did ({differing})"


def _kinds(found: Any) -> list[type]:
    """A class and those that it derives from, less Python's and torch's."""
    if not inspect.isclass(found):
        return []
    return [kind for kind in found.__mro__ if kind.__module__.partition(".")[0] not in ("builtins", "torch")]


def _codes(found: Any) -> Iterator[CodeType]:
    if inspect.isclass(found):
        for value in vars(found).values():
            function = getattr(value, "__func__", getattr(value, "fget", None)) or value
            if inspect.isfunction(function):
                yield inspect.unwrap(function).__code__
    else:
        yield inspect.unwrap(found).__code__


def _words_of(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    yield from code.co_varnames
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, tuple):
            yield from (item for item in constant if isinstance(item, str))
        elif isinstance(constant, CodeType):
            yield from _words_of(constant)


# ---- what is off in this process ---------------------------------------------------------------------------------------

_off: dict[Feature, list[Moved]] = {}


def version() -> str:
    """ComfyUI's version, as it calls itself."""
    try:
        return importlib.import_module("comfyui_version").__version__
    except (ImportError, AttributeError):
        return "of no version"


def check(table: Iterable[Name]) -> None:
    """Compare the table with the ComfyUI that runs; what moved is off from now on, and the log says so."""
    _off.clear()
    for moved in compare(table):
        for feature in moved.name.features:
            _off.setdefault(feature, []).append(moved)
    for line in what_is_off():
        logging.getLogger("hlwq").warning("HLWQ: %s", line)


def works(feature: Feature) -> bool:
    """Whether all that a feature needs is there."""
    return feature not in _off


def reason(feature: Feature) -> str | None:
    """What moved of what a feature needs; None if it works."""
    return f"ComfyUI {version()}: {'; '.join(map(str, _off[feature]))}" if feature in _off else None


def what_is_off() -> list[str]:
    """A line for each feature that is off: ComfyUI's version, what moved, the effect."""
    return [_line(feature, moved) for feature, moved in _off.items()]


def _line(feature: Feature, moved: list[Moved]) -> str:
    return f"ComfyUI {version()} is not as this pack knows it: {'; '.join(map(str, moved))}. {feature.value}."


def why_not(*features: Feature) -> str | None:
    """Why something that needs these features cannot run, as a node's `validate_inputs` says it; None if it can."""
    try:
        require(*features)
    except UnsupportedError as error:
        return str(error)
    return None


def require(*features: Feature) -> None:
    """Refuse what needs a feature that is off.

    Raises:
        UnsupportedError: names what moved.
    """
    for feature in features:
        if feature in _off:
            moved = _off[feature]
            raise UnsupportedError(
                f"this version of ComfyUI-HLWQ does not fit this ComfyUI: {feature.value}",
                expected=", ".join(dict.fromkeys(item.name.path for item in moved)) + " as ComfyUI-HLWQ knows it",
                found=f"ComfyUI {version()}: {'; '.join(map(str, moved))}",
                fix=FIX,
            )


# ---- names that may be gone -------------------------------------------------------------------------------------------


class _Absent(type):
    """The class of what stands for a name that is gone: it can be derived from and asked for more names, and refuses use."""

    path: str

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return absent(f"{cls.path}.{name}")

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise UnsupportedError(
            "this version of ComfyUI-HLWQ does not fit this ComfyUI",
            expected=cls.path,
            found=f"ComfyUI {version()}, which has no such name",
            fix=FIX,
        )


def absent(path: str) -> Any:
    """What stands for a name that is gone."""
    return _Absent(path.rpartition(".")[2], (), {"path": path})


def get(path: str) -> Any:
    """What a path stands for, or a stand-in that refuses to be used."""
    try:
        return find(path)
    except LookupError:
        return absent(path)


def module(path: str) -> Any:
    """A module, or a stand-in for it."""
    try:
        return importlib.import_module(path)
    except ImportError:
        return absent(path)
