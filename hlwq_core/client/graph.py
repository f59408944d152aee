"""Workflows in API form, changed from outside: inputs by title, files by what the server has, LoRAs put in."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import FormatError, InputError
from ..format.bounded import parse_json, read_bytes

Nodes = dict[str, dict[str, Any]]
Info = Mapping[str, Mapping[str, Any]]

SHIPPED = Path(__file__).parents[2] / "workflows" / "api"
_SEEDS = ("noise_seed", "seed")
# The loaders of a model, and which of their outputs is the report.
_REPORTS = {"HLWQLoadCheckpoint": 3, "HLWQLoadDiffusionModel": 1}
# Words by which the files of this family are told apart.
_TELLING = ("ltx", "gemma", "distilled", "spatial", "temporal")


def load(path: str | os.PathLike[str]) -> Nodes:
    """Read a workflow in API form."""
    path = Path(path)
    raw = read_bytes(path, "a workflow")
    try:
        nodes = parse_json(raw, "the workflow", path)
    except FormatError as e:
        raise InputError(
            "the workflow is not JSON", file=path, found=e.found, fix="choose Export (API) in ComfyUI's workflow menu"
        ) from e
    if isinstance(nodes, dict) and isinstance(nodes.get("nodes"), list):
        raise InputError(
            "this is a workflow for the canvas, not one in API form",
            file=path,
            fix="open it in ComfyUI and choose Export (API) in the workflow menu; the pack's own are in workflows/api/",
        )
    if not isinstance(nodes, dict) or not all(
        isinstance(n, dict) and isinstance(n.get("class_type"), str) and isinstance(n.get("inputs"), dict)
        for n in nodes.values()
    ):
        raise InputError(
            "this is not a workflow in API form",
            file=path,
            expected="an object of nodes, each with class_type and inputs",
            fix="choose Export (API) in ComfyUI's workflow menu",
        )
    return nodes


def classes(nodes: Nodes) -> list[str]:
    """The node classes of a workflow, each once."""
    return list(dict.fromkeys(n["class_type"] for n in nodes.values()))


def name_of(nodes: Nodes, node_id: str) -> str:
    """The title of a node as the user knows it: from `_meta`, else its class, else its id."""
    node = nodes.get(node_id, {})
    meta = node.get("_meta")
    title = meta.get("title") if isinstance(meta, dict) else None
    return str(title or node.get("class_type") or f"node {node_id}")


def find(nodes: Nodes, title: str) -> str | None:
    """The id of the node with this title; None if there is none.

    Raises:
        InputError: there are several.
    """
    found = [i for i in nodes if name_of(nodes, i) == title]
    if len(found) > 1:
        raise InputError(
            f"the workflow has {len(found)} nodes titled {title!r}",
            found="nodes " + ", ".join(found),
            fix="use the id for the title, or give them different titles",
        )
    return found[0] if found else None


def is_link(value: object) -> bool:
    """Whether an input's value is a connection `[node id, output index]`."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def put(nodes: Nodes, title: str, name: str, value: object) -> None:
    """Set one input of the node with this title."""
    node_id = find(nodes, title)
    if node_id is None or name not in nodes[node_id]["inputs"]:
        raise InputError(
            f"the workflow has no input {title}.{name}",
            found=", ".join(sorted(settable(nodes))) or "no input that could be set",
            fix="use a workflow with this title (workflows/README.md lists them), or leave the option away",
        )
    nodes[node_id]["inputs"][name] = value


def settable(nodes: Nodes) -> list[str]:
    """`Title.input` of every input that holds a value."""
    return [
        f"{name_of(nodes, i)}.{name}"
        for i, node in nodes.items()
        for name, v in node["inputs"].items()
        if not is_link(v)
    ]


def assign(nodes: Nodes, assignment: str, info: Info | None = None, *, lenient: bool = False) -> None:
    """Carry out `Title.input=value` (or `id.input=value`).

    The text is read as the kind of value that stands there; where none stands, as JSON if it is JSON.
    A connected input is replaced by the value. An input that the file leaves out is taken if `info` has it; `lenient` passes
    over it, because the server may know it.
    """
    left, equals, text = assignment.partition("=")
    left = left.strip()
    # Both titles and inputs ("values.a") may have dots, so the nodes decide where the title ends.
    candidates = [
        (i, left[len(t) + 1 :])
        for i in nodes
        for t in dict.fromkeys((name_of(nodes, i), i))
        if left.startswith(t + ".") and len(left) > len(t) + 1
    ]
    known = [(i, name) for i, name in candidates if name in nodes[i]["inputs"] or name in _inputs(nodes, i, info)]
    if not equals or not candidates:
        raise InputError(
            "this names no node of the workflow" if equals else "an assignment needs an equals sign",
            expected="Title.input=value, with a title of " + ", ".join(sorted({name_of(nodes, i) for i in nodes})),
            found=assignment,
            fix='write it as --set "Title.input=value"',
        )
    if not known and lenient:
        return
    if not known:
        node_id, name = candidates[0]
        inputs = dict.fromkeys([*nodes[node_id]["inputs"], *_inputs(nodes, node_id, info)])
        raise InputError(
            f"{name_of(nodes, node_id)} has no input {name!r}",
            expected=", ".join(inputs) or "no inputs",
            found=assignment,
            fix="take one of these",
        )
    if len({i for i, _ in known}) > 1:
        raise InputError(
            "several nodes have this title",
            expected="one of the ids " + ", ".join(i for i, _ in known) + " in the title's place",
            found=assignment,
            fix=f"--set {known[0][0]}.{known[0][1]}=VALUE",
        )
    node_id, name = known[0]
    inputs = nodes[node_id]["inputs"]
    inputs[name] = _value(text, inputs.get(name), assignment)


def _inputs(nodes: Nodes, node_id: str, info: Info | None) -> dict[str, Any]:
    described = _object(_object((info or {}).get(nodes[node_id]["class_type"])).get("input"))
    return {**_object(described.get("required")), **_object(described.get("optional"))}


def _object(value: object) -> dict[str, Any]:
    """What a server says of a node, as far as it has the form."""
    return value if isinstance(value, dict) else {}


def _value(text: str, present: object, assignment: str) -> object:
    if isinstance(present, str):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    kinds = {bool: "true or false", int: "a whole number", float: "a number"}
    if type(present) in kinds:
        fits = isinstance(value, bool) if isinstance(present, bool) else type(value) in (int, float)
        if isinstance(present, int) and isinstance(value, float):
            fits = False
        if not fits:
            raise InputError(
                "this value does not fit", expected=kinds[type(present)], found=assignment, fix="correct the value"
            )
    return value


def reseed(nodes: Nodes, step: int) -> Nodes:
    """A copy with every literal seed moved on by `step` (modulo 2**64)."""
    moved = copy.deepcopy(nodes)
    for node in moved.values():
        for name in _SEEDS:
            if type(node["inputs"].get(name)) is int:
                node["inputs"][name] = (node["inputs"][name] + step) % 2**64
    return moved


def add_loras(nodes: Nodes, loras: Iterable[tuple[str, float]]) -> None:
    """Put LoraLoaderModelOnly nodes between the model and all that uses it, in this order.

    They come behind the node titled `Distilled LoRA`, or behind the model's loader where there is none.
    """
    source = find(nodes, "Distilled LoRA") or _loader(nodes, "a LoRA")
    behind = [
        ("LoraLoaderModelOnly", f"LoRA {index}", {"lora_name": file, "strength_model": strength})
        for index, (file, strength) in enumerate(loras, 1)
    ]
    _put_behind(nodes, source, behind)


def add_calibration(nodes: Nodes, name: str, moments: str) -> None:
    """Put HLWQ Calibrate behind the model's loader, or its node titled `Distilled LoRA`: it is to see what the model is run with."""
    source = find(nodes, "Distilled LoRA") or _loader(nodes, "HLWQ Calibrate")
    _put_behind(nodes, source, [("HLWQCalibrate", "Calibrate", {"name": name, "moments": moments, "memory_gb": 4.0})])


def _loader(nodes: Nodes, what: str) -> str:
    loaders = [i for i, n in nodes.items() if n["class_type"] in _REPORTS]
    if len(loaders) != 1:
        raise InputError(
            f"no place for {what} in this workflow",
            expected=f"one {' or '.join(_REPORTS)}, or a node titled 'Distilled LoRA'",
            found=f"{len(loaders)} of them",
            fix=f"put {what} into the workflow itself",
        )
    return loaders[0]


def _put_behind(nodes: Nodes, source: str, behind: Iterable[tuple[str, str, dict[str, Any]]]) -> None:
    """Nodes (class, title, inputs but for the model) between a node's first output and all that uses it, in this order."""
    users = [
        (node["inputs"], name)
        for node in nodes.values()
        for name, value in node["inputs"].items()
        if is_link(value) and value == [source, 0]
    ]
    last = source
    for kind, title, inputs in behind:
        node_id = _new_id(nodes)
        nodes[node_id] = {"class_type": kind, "_meta": {"title": title}, "inputs": {"model": [last, 0], **inputs}}
        last = node_id
    for inputs, name in users:
        inputs[name] = [last, 0]


def add_report(nodes: Nodes) -> str | None:
    """Show the checkpoint loader's report in the history, with a core node; the id of that node.

    An output node answers even when nothing had to be loaded again. None without a checkpoint loader.
    """
    loaders = [i for i, n in nodes.items() if n["class_type"] in _REPORTS]
    if not loaders:
        return None
    node_id = _new_id(nodes)
    nodes[node_id] = {
        "class_type": "PreviewAny",
        "_meta": {"title": "Report"},
        "inputs": {"source": [loaders[0], _REPORTS[nodes[loaders[0]]["class_type"]]]},
    }
    return node_id


def _new_id(nodes: Nodes) -> str:
    return str(max((int(i) for i in nodes if i.isdecimal() and len(i) < 20), default=0) + 1)


# ---- files that the server has -----------------------------------------------------------------------------------


def choices(spec: object) -> list[str] | None:
    """The options of a combo input of /object_info (both of its spellings); None for every other input."""
    if not isinstance(spec, list) or not spec:
        return None
    if isinstance(spec[0], list):
        return [str(o) for o in spec[0]]
    options = _details(spec).get("options")
    return [str(o) for o in options] if spec[0] == "COMBO" and isinstance(options, list) else None


def _details(spec: object) -> dict[str, Any]:
    return _object(spec[1]) if isinstance(spec, list) and len(spec) > 1 else {}


def resolve(
    nodes: Nodes, info: Info, say: Callable[[str], None] = lambda line: None, asked: Collection[str] = ()
) -> None:
    """Make every file and choice in the workflow one that the server offers.

    A value that is not offered is replaced if just one option can be meant: the same file in another
    folder or spelling, one with the same telling words in its name (`gemma`, or `ltx` and `distilled`), or
    the only one there is. `say` is told of each replacement. Names that the user `asked` for are not guessed.

    Raises:
        InputError: no option, or more than one, can be meant; lists them.
    """
    for node_id, node in nodes.items():
        for name, spec in _inputs(nodes, node_id, info).items():
            options, value = choices(spec), node["inputs"].get(name)
            if options is None or not isinstance(value, str) or value in options or _is_upload(spec):
                continue
            fitting = match(value, options, asked=value in asked, lora=name == "lora_name")
            where = f"{name_of(nodes, node_id)}.{name}"
            if len(fitting) != 1:
                shown = fitting or options
                raise InputError(
                    f"{where}: ComfyUI has no {value!r}" + (", and several that could be meant" if fitting else ""),
                    found="\n    ".join(["", *shown[:40]]) if shown else "nothing to choose from: the folder is empty",
                    fix=_advice(where, name, bool(options)),
                )
            say(f"{where}: {fitting[0]} (there is no {value})")
            node["inputs"][name] = fitting[0]


def _is_upload(spec: object) -> bool:
    return any(_details(spec).get(f"{kind}_upload") for kind in ("image", "audio", "video"))


_OPTIONS = {"checkpoint": "--checkpoint", "text_encoder": "--text-encoder"}
_PLACES = {
    "checkpoint": "models/hlwq/ (`python -m hlwq_core download` fetches one)",
    "text_encoder": "models/text_encoders/",
    "lora_name": "models/loras/",
    "upscaler": "the checkpoint's upscalers/ folder or models/latent_upscale_models/",
}


def _advice(where: str, name: str, any_there: bool) -> str:
    choose = f"choose one with {_OPTIONS[name]} NAME" if name in _OPTIONS else f'choose one with --set "{where}=NAME"'
    place = _PLACES.get(name)
    if not any_there:
        return f"put the file into {place}" if place else "install what the node needs"
    return f"{choose}, or put the file into {place}" if place else choose


# `LTX-2.3`, `ltx_2.3`, `ltx25`, `gemma_3_12B`, `gemma4`: whose files, and of which version.
_VERSION = re.compile(r"(ltx|gemma)[-_ ]?v?(\d)(?:[._]?(\d)(?!\d))?")


def _same_version(one: str, other: str) -> bool:
    """Whether two names of files may mean the same: not where they name two versions of one model."""
    ours, theirs = (
        {found[1]: found.groups()[1:] for found in _VERSION.finditer(name.lower())} for name in (one, other)
    )
    return all(theirs.get(model, version) == version for model, version in ours.items())


def match(value: str, options: list[str], *, asked: bool = False, lora: bool = False) -> list[str]:
    """The options that `value` may mean; exactly one is a match.

    Args:
        asked: the user wrote the name: only its path, file name or a part of the file name count.
        lora: another LoRA is another result: only a distillation LoRA may stand for another one.
    """
    for key in (_path, _file, _stem):
        if same := [o for o in options if key(o) == key(value)]:
            return same
    if inside := [o for o in options if _stem(value) in _path(o)]:
        return inside
    words = [w for w in _TELLING if w in value.lower()]
    if asked or (lora and "distilled" not in words):
        return []
    if words and (alike := [o for o in options if all(w in o.lower() for w in words) and _same_version(value, o)]):
        same_kind = [o for o in alike if Path(o).suffix == Path(value).suffix]
        return same_kind or alike
    return options if len(options) == 1 and not lora and _same_version(value, options[0]) else []


def _path(name: str) -> str:
    return name.replace("\\", "/").lower()


def _file(name: str) -> str:
    return _path(name).rsplit("/", 1)[-1]


def _stem(name: str) -> str:
    return _file(name).removesuffix(".safetensors")
