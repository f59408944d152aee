"""ComfyUI's core in a process without its server, started as its `main.py` starts: a program, run by path.

    python boot.py '{"comfyui": FOLDER, "pack": FOLDER, "arguments": {…}, "run": MODULE, …}'

Arguments are those of the ComfyUI that started us. `MODULE` is one of the pack's; its `run_worker(given, output)` gets all of the
above, and the file descriptor that was standard output. Before torch is imported dynamic VRAM is set up, and the allocator chosen.

Source: ComfyUI 0.30.0 to 0.33.0, `main.py`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any


def boot(comfyui: str, arguments: dict[str, Any]) -> None:
    """Import ComfyUI's core with these arguments."""
    sys.path.insert(0, comfyui)
    cli = importlib.import_module("comfy.cli_args")
    for name, value in arguments.items():
        if hasattr(cli.args, name):
            setattr(cli.args, name, _argument(cli, value))
    dynamic = not cli.args.cpu and cli.enables_dynamic_vram()
    if dynamic:
        control = importlib.import_module("comfy_aimdo.control")
        reserved = cli.args.reserve_vram
        try:
            control.init(
                simple_vram_headroom=None if reserved is None else int(reserved * 1024**3),
                nvml_pressure=not getattr(cli.args, "disable_nvml_pressure", False),
            )
        except TypeError:  # an older comfy-aimdo
            control.init()
    if not cli.args.cpu:
        importlib.import_module("cuda_malloc")
    management = importlib.import_module("comfy.model_management")
    patchers = importlib.import_module("comfy.model_patcher")
    memory = importlib.import_module("comfy.memory_management")
    if dynamic and management.is_nvidia() and not management.is_wsl():
        devices = management.get_all_torch_devices()
        headroom = int(getattr(cli.args, "vram_headroom", 0) * 1024**3)
        try:
            ready = control.init_devices((device.index, headroom) for device in devices)
        except TypeError:
            ready = control.init_devices(device.index for device in devices)
        if ready:
            getattr(control, "set_log_warning", lambda: None)()
            patchers.CoreModelPatcher = patchers.ModelPatcherDynamic  # type: ignore[attr-defined]
            memory.aimdo_enabled = True  # type: ignore[attr-defined]


def arguments(namespace: Any) -> dict[str, Any]:
    """ComfyUI's arguments as JSON, for `boot` in another process; what names devices is left out, that process has its own."""
    left_out = {"cuda_device", "default_device", "base_directory", "listen", "port"}
    found = {name: _plain(value) for name, value in vars(namespace).items() if name not in left_out}
    return {name: value for name, value in found.items() if value is not _UNKNOWN}


_UNKNOWN = object()


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)) and type(value).__module__ == "builtins":
        return value
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return _UNKNOWN if _UNKNOWN in items else items
    if isinstance(value, (set, frozenset)):
        items = [_plain(item) for item in value]
        return _UNKNOWN if _UNKNOWN in items else {"set": items}
    if type(value).__module__ == "comfy.cli_args":
        return {"enum": type(value).__name__, "value": value.value}
    return _UNKNOWN


def _argument(cli: Any, value: Any) -> Any:
    if isinstance(value, list):
        return [_argument(cli, item) for item in value]
    if isinstance(value, dict) and "set" in value:
        return {_argument(cli, item) for item in value["set"]}
    if isinstance(value, dict):
        return getattr(cli, value["enum"])(value["value"])
    return value


def pack(folder: str, name: str = "comfyui_hlwq") -> None:
    """The pack, as ComfyUI imports it."""
    spec = importlib.util.spec_from_file_location(
        name, Path(folder) / "__init__.py", submodule_search_locations=[folder]
    )
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def main() -> None:
    """See the module's text."""
    output = os.dup(1)
    os.dup2(2, 1)  # what is printed goes to the log
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    given = json.loads(sys.argv[1])
    sys.argv[1:] = []
    boot(given["comfyui"], given["arguments"])
    pack(given["pack"])
    importlib.import_module(f"comfyui_hlwq.{given['run']}").run_worker(given, output)


if __name__ == "__main__":
    main()
