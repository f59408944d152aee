"""A video from a prompt on a ComfyUI that runs, for programs: `from hlwq_core.generate import Request, generate`."""

from .client.generate import Request, Result, generate, queue

__all__ = ["Request", "Result", "generate", "queue"]
