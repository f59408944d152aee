"""What this ComfyUI is, as far as the pack goes, for a bug report: `python -m hlwq_core doctor` asks it in a process of its own."""

from __future__ import annotations

from typing import Any

from . import COMFYUI_FLOOR, comfyui_version, moved, why_too_old


def examine() -> dict[str, Any]:
    """ComfyUI's version, what moved in it, the model folders and what is in them. Paths are whole: whoever shows them hides the home."""
    version = comfyui_version()
    found: dict[str, Any] = {
        "version": version,
        "floor": ".".join(map(str, COMFYUI_FLOOR)),
        "too_old": why_too_old(version),
    }
    if found["too_old"]:
        return found
    found["moved"] = moved()
    from . import listing, locations

    locations.register()
    kinds = (*locations.CHECKPOINT_FOLDERS, locations.TEXT_ENCODER_FOLDER, locations.UPSCALER_FOLDER, "loras")
    found["folders"] = {kind: locations.roots(kind) for kind in kinds}
    found["checkpoints"] = {label: str(path) for label, path in locations.checkpoints().items()}
    found["text_encoders"] = list(locations.text_encoders())
    found["upscalers"] = list(locations.upscalers())
    found["not_listed"] = listing.not_listed()
    return found
