"""A ComfyUI that a program starts and ends: `from hlwq_core.server import LocalServer`."""

from .client.server import LocalServer

__all__ = ["LocalServer"]
