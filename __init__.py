"""ComfyUI-HLWQ: HLWQ (PolarQuant) checkpoints in ComfyUI, packed in memory and decoded as they are used."""

from .nodes import comfy_entrypoint, too_old

WEB_DIRECTORY = "./web"
__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]

if too_old():
    # ComfyUI then loads a pack without nodes: one line in the log instead of a traceback.
    del comfy_entrypoint
    NODE_CLASS_MAPPINGS: dict = {}
    __all__ = ["NODE_CLASS_MAPPINGS"]
