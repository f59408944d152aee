"""ComfyUI's own answer to the question whether a request may come from another site's page.

Source: ComfyUI 0.30.0, `server.py`, `create_origin_only_middleware`; with --enable-cors-header ComfyUI itself does not ask.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import server
from aiohttp import web


def _own() -> object:
    """What stands in where ComfyUI has no such check: the hosts must be the same."""

    async def check(request: web.Request, handler: object) -> None:
        found, own = urlsplit(request.headers.get("Origin", "")), urlsplit(f"//{request.host}")
        if not found.hostname or found.hostname == own.hostname:
            await handler(request)  # type: ignore[operator]

    return check


_check: Any = getattr(server, "create_origin_only_middleware", _own)()


async def accepted(request: web.Request) -> bool:
    """Whether the check lets a request through: `Sec-Fetch-Site`, and where the host is this machine `Host` against `Origin`,
    ports only where both name one (proxies drop them)."""
    passed = False

    async def handler(_: web.Request) -> web.Response:
        nonlocal passed
        passed = True
        return web.Response()

    try:
        await _check(request, handler)
    except ValueError:  # an origin that is none, such as one with the port 99999
        return False
    return passed
