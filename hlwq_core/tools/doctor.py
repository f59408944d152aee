"""What there is and what is wrong with it: ComfyUI, torch, cards, backends, packages, folders, for a person and for a bug report.

Nothing here opens a connection. The home folder is shown as `~` and the user's name as `USER`; no variable is shown but the
pack's own switches.
"""

from __future__ import annotations

import getpass
import importlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import comfyui, switches
from ..errors import HLWQError, printable

# What the pack can use beyond its requirements, and for what.
OPTIONAL = {
    "av": "videos",
    "aiohttp": "generate, queue, batch",
    "comfy-kitchen": "ComfyUI's quantized tensors",
    "comfy-aimdo": "dynamic VRAM",
    "triton": "the triton backend",
    "cuda-bindings": "the cuda backend",
    "sageattention": "attention in 8 bits",
    "ray": "batch on several machines",
}
_SHOWN = 20
# Seconds for ComfyUI to be imported, from a cold disk; for nvidia-smi.
_PATIENCE = 180
_DRIVER_PATIENCE = 20

# Run in ComfyUI's folder: what its own start does before it loads nodes, and then the pack.
_ASK = """
import importlib, importlib.util, json, os, sys
root, init, base = sys.argv[1:4]
sys.argv[1:] = []
sys.path.insert(0, root)
import comfy.cli_args
comfy.cli_args.args.cpu = True
if base:
    comfy.cli_args.args.base_directory = base
import folder_paths
extra = os.path.join(root, "extra_model_paths.yaml")
if os.path.isfile(extra):
    from utils.extra_config import load_extra_path_config
    load_extra_path_config(extra)
spec = importlib.util.spec_from_file_location("pack", init, submodule_search_locations=[os.path.dirname(init)])
pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
print("\\nfound " + json.dumps(importlib.import_module("pack.nodes.examining").examine()))
"""


@dataclass
class Examination:
    """The result. `facts`: name → what was found, in the order shown; `problems`: what is wrong and what to do, worst first."""

    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[dict[str, str]] = field(default_factory=list)

    def wrong(self, what: object, fix: str) -> None:
        """Note something that is wrong."""
        self.problems.append({"what": str(what), "fix": fix})

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the user's name."""
        shown: dict[str, Any] = _hidden(asdict(self))
        return shown

    def text(self) -> str:
        """To paste into a bug report."""
        shown = self.to_dict()
        lines = []
        for name, value in shown["facts"].items():
            if isinstance(value, dict):
                value = [f"{key}: {item}" for key, item in value.items()]
            values = value if isinstance(value, list) else [value]
            more = [f"… and {len(values) - _SHOWN} more"] if len(values) > _SHOWN else []
            for number, item in enumerate([*values[:_SHOWN], *more] or ["none"]):
                lines.append(f"{name if not number else '':<16} {printable(item)}")
        lines.append("")
        for problem in shown["problems"]:
            lines.append("wrong: " + printable(problem["what"]).replace("\n", "\n  "))
            lines.append(f"  what to do: {printable(problem['fix'])}")
        return "\n".join(lines if shown["problems"] else [*lines, "nothing is wrong"])


def examine(version: str, given: str | os.PathLike[str] | None = None) -> Examination:
    """Look at everything.

    Args:
        version: the pack's.
        given: the folder of ComfyUI, where it is not the one around this pack or in COMFYUI_PATH.
    """
    found = Examination()
    found.facts["ComfyUI-HLWQ"] = f"{version} in {comfyui.PACK}"
    found.facts["system"] = f"{platform.platform()}, {os.cpu_count()} processors"
    found.facts["Python"] = f"{platform.python_version()} ({sys.executable})"
    _packages(found)
    _torch(found)
    _comfyui(found, given)
    found.facts["switches"] = {name: value for name in switches.SWITCHES if (value := switches.value(name))}
    return found


def _packages(found: Examination) -> None:
    lines = (comfyui.PACK / "requirements.txt").read_text(encoding="utf-8").split()
    for name, least in (line.split(">=") for line in lines):
        has = _version(name)
        found.facts.setdefault("requirements", {})[name] = f"{has or 'missing'} (at least {least})"
        if has is None or _numbers(has) < _numbers(least):
            found.wrong(
                f"{name} is {has or 'missing'}, {least} or newer is needed",
                f"run with ComfyUI's Python: python -m pip install -r {comfyui.PACK / 'requirements.txt'}",
            )
    found.facts["optional"] = {f"{name} ({use})": _version(name) or "not there" for name, use in OPTIONAL.items()}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _torch(found: Examination) -> None:
    found.facts["driver"] = driver()
    try:
        torch = importlib.import_module("torch")
        from .. import backends
    except (ImportError, OSError) as error:
        found.facts["torch"] = f"does not import: {error}"
        found.wrong(f"torch does not import: {error}", "run this with ComfyUI's own Python")
        return
    built = torch.version.cuda or torch.version.hip or "no GPU"
    found.facts["torch"] = f"{torch.__version__}, built for {built}"
    cards = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    found.facts["cards"] = [
        f"{card.name}, {card.total_memory / 1e9:.1f} GB, compute capability {card.major}.{card.minor}" for card in cards
    ]
    if not cards and found.facts["driver"] != "none":
        found.wrong("there is an NVIDIA card, and torch does not see it", "install a torch that is built for CUDA")
    device = torch.device("cuda" if cards else "cpu")
    try:
        reasons = backends.unavailable_reasons(device)
        found.facts["backend"] = [f"{backends.choose(device).name}, on {device.type}"]
        found.facts["backend"] += [f"{name} cannot: {reason}" for name, reason in reasons.items() if reason]
        reason = backends.fast_unavailable_reason(device)
        found.facts["fast mode"] = f"no: {reason}" if reason else f"yes, {backends.fast_kind(device)}"
        if cards and torch.version.cuda and reasons["cuda"]:
            found.wrong(
                f"the cuda backend cannot run, decoding is slower: {reasons['cuda']}", "mend that, then ask again"
            )
    except HLWQError as error:
        found.wrong(error.what, error.fix or "correct it")


def driver() -> str:
    """What nvidia-smi says of the driver; `none` where there is none."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DRIVER_PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return "none"
    return (done.stdout.strip().splitlines() or ["none"])[0] if done.returncode == 0 else "none"


def _comfyui(found: Examination, given: str | os.PathLike[str] | None) -> None:
    try:
        root = comfyui.program(given)
    except HLWQError as error:
        found.facts["ComfyUI"] = "not found"
        found.wrong(error.what, "give its folder: python -m hlwq_core doctor --comfyui FOLDER, or set COMFYUI_PATH")
        return
    found.facts["ComfyUI"] = str(root)
    try:
        base = str(comfyui.base()) if given is None else ""
    except HLWQError:
        base = ""
    init = str(comfyui.PACK / "__init__.py")
    command = [sys.executable, "-c", _ASK, str(root), init, "" if base == str(root) else base]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=_PATIENCE, errors="replace")
    except subprocess.TimeoutExpired:
        found.wrong(f"ComfyUI was not imported in {_PATIENCE} s", "look at the disk that it lies on, and try again")
        return
    line = next((line for line in done.stdout.splitlines() if line.startswith("found ")), None)
    if line is None:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        fix = "run this with ComfyUI's own Python (portable: python_embeded/python.exe), after its requirements were installed"
        found.wrong(f"ComfyUI does not import: {last}", fix)
        return
    _tell(found, root, json.loads(line[6:]))


def _tell(found: Examination, root: Path, seen: dict[str, Any]) -> None:
    found.facts["ComfyUI"] = f"{seen['version']} in {root}"
    if seen["too_old"]:
        found.wrong(seen["too_old"], f"update ComfyUI to {seen['floor']} or newer")
        return
    found.facts["moved in it"] = seen["moved"] or "nothing that the pack uses"
    for name in seen["moved"]:
        found.wrong(
            f"this ComfyUI is not as the pack knows it: {name}", "update ComfyUI-HLWQ; if it is the newest, report this"
        )
    found.facts["folders"] = [
        f"{kind}: {path}{'' if os.path.isdir(path) else ' (not there)'}"
        for kind, paths in seen["folders"].items()
        for path in paths
    ]
    found.facts["checkpoints"] = [_checkpoint(found, *item) for item in list(seen["checkpoints"].items())[:_SHOWN]]
    found.facts["text encoders"] = seen["text_encoders"]
    found.facts["upscalers"] = seen["upscalers"]
    found.facts["not listed"] = seen["not_listed"]
    if not seen["checkpoints"]:
        found.wrong(
            "there is no HLWQ checkpoint in the model folders",
            "python -m hlwq_core download, or the node HLWQ Download",
        )
    if not seen["text_encoders"]:
        found.wrong("there is no text encoder in the model folders", "put Gemma 3 12B into models/text_encoders")


def _checkpoint(found: Examination, label: str, path: str) -> str:
    from .inspect import inspect

    try:
        what = inspect(path)
    except (HLWQError, OSError) as error:
        found.wrong(f"{label}: {error}", getattr(error, "fix", None) or f"python -m hlwq_core inspect {path}")
        return f"{label}: cannot be read"
    if not what.complete:
        found.wrong(f"{label} is not complete", what.next_step)
    state = "complete" if what.complete else f"NOT complete, {len(what.missing)} tensors are missing"
    return f"{label}: {what.model}, {what.nbytes / 1e9:.2f} GB, {state}"


def _hidden(value: Any) -> Any:
    """The same without the home folder's path and the user's name, in every text."""
    if isinstance(value, dict):
        return {_hidden(key): _hidden(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_hidden(item) for item in value]
    return anonymous(value) if isinstance(value, str) else value


def anonymous(text: str) -> str:
    """A text with the home folder as `~` and, in other paths, the user's name as `USER`."""
    for home in dict.fromkeys((os.path.expanduser("~"), os.path.realpath(os.path.expanduser("~")))):
        if len(home) > 1:
            text = re.sub(re.escape(home) + r"(?![\w.-])", "~", text)
    try:
        name = getpass.getuser()
    except (ImportError, KeyError, OSError):  # a container's user has no name
        return text
    return re.sub(rf"(?<=[/\\]){re.escape(name)}(?=[/\\]|$)", "USER", text)
