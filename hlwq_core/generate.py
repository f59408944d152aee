"""A video from a prompt on a ComfyUI that runs, for programs: `from hlwq_core.generate import Request, generate`."""

from .batch.several import Result, generate, queue
from .client.generate import Request

__all__ = ["Request", "Result", "generate", "queue"]
