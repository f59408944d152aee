"""Talking to a ComfyUI from outside: its server, its queue, workflows and progress."""

from typing import Any


def __getattr__(name: str) -> Any:
    # `from hlwq_core.client import Client`, without aiohttp for whoever wants another module of this folder.
    if name == "Client":
        from .client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
