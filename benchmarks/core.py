"""ComfyUI without its server, for the benchmarks of whole models: started in the order that its dynamic VRAM needs."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

REPO = Path(__file__).resolve().parents[1]
_booted: list[bool] = []


def boot(comfyui: str | None = None, dynamic: bool = True, cuda_malloc: bool = True) -> bool:
    """Import ComfyUI's core; returns whether it runs with dynamic VRAM. Before torch is imported; a second call does nothing.

    Args:
        comfyui: its folder; else COMFYUI_PATH.
        dynamic: let it use dynamic VRAM where there is a GPU.
        cuda_malloc: False for torch's own allocator, as by --disable-cuda-malloc.
    """
    if _booted:
        return _booted[0]
    folder = comfyui or os.environ.get("COMFYUI_PATH")
    if not folder or not (Path(folder) / "comfy").is_dir():
        raise SystemExit("where is ComfyUI? Set COMFYUI_PATH to its folder")
    assert "torch" not in sys.modules, "torch was imported too early: its allocator cannot be chosen any more"
    sys.path[:0] = [str(REPO), folder]
    from comfy.cli_args import args

    gpu = os.path.exists("/dev/nvidiactl") or bool(os.environ.get("CUDA_VISIBLE_DEVICES")) or os.name == "nt"
    args.cpu = not gpu
    args.disable_cuda_malloc = not cuda_malloc
    dynamic = dynamic and gpu
    if dynamic:
        import comfy_aimdo.control

        comfy_aimdo.control.init(simple_vram_headroom=None, nvml_pressure=True)
    if gpu:
        import cuda_malloc
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher

    if dynamic:
        devices = comfy.model_management.get_all_torch_devices()
        if not comfy_aimdo.control.init_devices((d.index, int(args.vram_headroom * 1024**3)) for d in devices):
            raise SystemExit("comfy-aimdo does not work here: no dynamic VRAM")
        comfy_aimdo.control.set_log_info()  # else it tells of every allocation
        comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
        comfy.memory_management.aimdo_enabled = True
    _booted.append(dynamic)
    return dynamic


def pack() -> ModuleType:
    """This repository as ComfyUI imports it, under the name `comfyui_hlwq`."""
    name = "comfyui_hlwq"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, REPO / "__init__.py", submodule_search_locations=[str(REPO)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]
