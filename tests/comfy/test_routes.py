"""The routes in this process: whose requests are taken, and that whatever comes is answered in a sentence."""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import mmap
from types import ModuleType
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def routes(pack: ModuleType, comfy_base: Any) -> ModuleType:
    return importlib.import_module(f"{pack.__name__}.nodes.routes")


@pytest.fixture(scope="module")
def origin(pack: ModuleType) -> ModuleType:
    return importlib.import_module(f"{pack.__name__}.nodes.compat.origin")


def ask(
    routes: ModuleType, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, str, dict[str, str]]:
    """Status, text and headers of an answer, by the handlers that are registered."""
    table = {
        "/hlwq/checkpoint": routes.get_checkpoint,
        "/hlwq/coverage": routes.get_coverage,
        "/hlwq/verify": routes.post_verify,
        "/hlwq/cancel": routes.post_cancel,
        "/hlwq/download": routes.post_download,
        "/hlwq/published": routes.get_published,
        "/hlwq/memory": routes.post_memory,
    }

    async def go() -> tuple[int, str, dict[str, str]]:
        app = web.Application()
        for route, handler in table.items():
            app.router.add_route("*", route, routes._guarded(handler))
        async with TestClient(TestServer(app)) as client:
            async with client.request(method, path, data=body, headers=headers or {}) as answer:
                return answer.status, (await answer.read()).decode(errors="replace"), dict(answer.headers)

    return asyncio.run(go())


@pytest.mark.parametrize(
    ("host", "origin_", "taken"),
    [
        ("example.com", "https://example.com:8443", True),  # a proxy that drops the port
        ("example.com:8188", "https://example.com", True),
        ("comfy.internal:8188", "https://example.com", True),  # a proxy that asks by the inner name
        ("127.0.0.1:8188", "http://127.0.0.1:8188", True),
        ("localhost:8188", "http://LOCALHOST:8188", True),
        ("localhost", "http://localhost:3000", True),
        ("[::1]:8188", "http://[::1]:8188", True),
        ("127.0.0.1:8188", "http://127.0.0.1:3000", False),
        ("127.0.0.1:8188", "https://example.org", False),
        ("localhost:8188", "https://localhost.example.org", False),
        ("[::1]:8188", "http://example.org", False),
        ("127.0.0.1:8188", "http://127.0.0.1:99999", False),
        ("127.0.0.1:8188", None, True),
    ],
)
def test_posts_are_taken_where_cores_are(
    routes: ModuleType, host: str, origin_: str | None, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import server

    # No names are asked for in a test; what is local is told by its spelling.
    local = ("localhost", "127.0.0.1", "::1")
    monkeypatch.setattr(server, "is_loopback", lambda name: name in local)
    headers = {**JSON, "Host": host, **({"Origin": origin_} if origin_ else {})}
    status, *_ = ask(routes, "POST", "/hlwq/cancel", b'{"job": "none"}', headers)
    assert status == (200 if taken else 403)


@pytest.mark.parametrize(
    ("origin_", "taken"), [("http://127.0.0.1", True), (None, True), ("https://example.org", False)]
)
def test_a_comfyui_without_such_a_check(
    routes: ModuleType, origin: ModuleType, monkeypatch: pytest.MonkeyPatch, origin_: str | None, taken: bool
) -> None:
    """Its name is private and may go."""
    monkeypatch.setattr(origin, "_check", origin._own())
    headers = {**JSON, "Host": "127.0.0.1:8188", **({"Origin": origin_} if origin_ else {})}
    assert ask(routes, "POST", "/hlwq/cancel", b'{"job": "none"}', headers)[0] == (200 if taken else 403)


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize("route", ["checkpoint", "coverage"])
def test_another_page_reads_nothing(routes: ModuleType, route: str, site: str) -> None:
    """As a picture there is no origin, but every browser of today says whose page it is."""
    assert ask(routes, "GET", f"/hlwq/{route}?name=x", headers={"Sec-Fetch-Site": site})[0] == 403


@pytest.mark.parametrize("path", ["/hlwq/checkpoint?name=x", "/hlwq/coverage?name=LTX-2.3-tiny-HLWQ-Q5"])
def test_browsers_are_told_to_give_it_to_no_other_page(routes: ModuleType, path: str) -> None:
    """Where Sec-Fetch-Site is not sent, over plain HTTP to another machine, the browser still keeps this."""
    headers = ask(routes, "GET", path)[2]
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin" and headers["X-Content-Type-Options"] == "nosniff"


NAMES = ["n" * 256, "n" * 300, "é" * 200, "a/" * 1000, "x\x00y", "x\ny", "\ud800", "n" * 5000]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_names_of_any_form(routes: ModuleType, name: str) -> None:
    status, text, _ = ask(routes, "POST", "/hlwq/verify", json.dumps({"name": name}).encode(), JSON)
    assert status == 400 and text and "Traceback" not in text
    from urllib.parse import quote

    for route in ("checkpoint", "coverage"):
        status, text, _ = ask(routes, "GET", f"/hlwq/{route}?name={quote(name, errors='replace')}")
        assert status in (400, 422) and "Traceback" not in text


BODIES = {
    "deep": b"[" * 60_000,
    "deep objects": b'{"a":' * 10_000,
    "a long number": b'{"name": ' + b"1" * 6000 + b"}",
    "no text": b"\xff\xfe\x00",
    "nothing": b"",
    "NaN": b"NaN",
    "a list": b"[]",
    "numbers": b'{"name": 5}',
    "null": b'{"name": null}',
    "nested": b'{"name": {"name": "x"}}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("route", ["verify", "download", "cancel"])
def test_bodies_of_any_form(routes: ModuleType, route: str, body: bytes) -> None:
    status, text, _ = ask(routes, "POST", f"/hlwq/{route}", body, JSON)
    assert status == 400 and text and "Traceback" not in text


@pytest.mark.parametrize("charset", ["nonsense", "utf-16", "rot13", "base64", "hex", "undefined", "x" * 300])
def test_charsets_of_any_name(routes: ModuleType, charset: str) -> None:
    headers = {"Content-Type": f"application/json; charset={charset}"}
    status, text, _ = ask(routes, "POST", "/hlwq/cancel", b'{"job": "x"}', headers)
    assert status == 400 and text and "Traceback" not in text


def test_a_body_that_is_too_large(routes: ModuleType) -> None:
    body = b'{"name": "' + b"x" * (1 << 17) + b'"}'
    assert ask(routes, "POST", "/hlwq/verify", body, JSON)[0] == 413


def test_what_the_system_refuses_is_said(routes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(routes.locations, "checkpoint", refuse)
    for method, path, body in (
        ("GET", "/hlwq/checkpoint?name=x", None),
        ("GET", "/hlwq/coverage?name=x", None),
        ("POST", "/hlwq/verify", b'{"name": "x"}'),
    ):
        status, text, _ = ask(routes, method, path, body, JSON)
        assert status == 422 and "Permission denied" in json.loads(text)["error"]


def test_what_is_published(routes: ModuleType) -> None:
    status, text, _ = ask(routes, "GET", "/hlwq/published")
    assert status == 200
    sizes = json.loads(text)
    assert "caiovicentino1/LTX-2.3-22B-HLWQ-Q5" in sizes and all(size > 10**9 for size in sizes.values())


def test_memory(routes: ModuleType) -> None:
    """What the program holds, where there is no card: it grows by what is made."""
    gc.collect()
    before = json.loads(ask(routes, "POST", "/hlwq/memory", b"{}", JSON)[1])
    # Pages of its own: what malloc gives may lie in the process already.
    with mmap.mmap(-1, 64 << 20) as held:
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
        after = json.loads(ask(routes, "POST", "/hlwq/memory", b"{}", JSON)[1])
    assert before["device"] == after["device"]
    assert after["device"] == "GPU" or after["bytes"] - before["bytes"] > 32 << 20
    assert ask(routes, "POST", "/hlwq/memory", b"x", JSON)[0] == 400
