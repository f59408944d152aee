"""Servers behind a gateway: what is sent to them, what is sent to nobody else, and what is shown to nobody."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from hlwq_core.client.address import Address, read_headers
from hlwq_core.client.client import Client, result_files
from hlwq_core.errors import HLWQError, InputError, ServerError

from .fake_comfy import WORKFLOW, FakeComfy

REPO = Path(__file__).resolve().parents[3]
SECRET = "tok-verysecret"
pytestmark = pytest.mark.timeout(60)


def play(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 20))


@pytest.mark.parametrize(
    ("text", "shown", "asked"),
    [
        ("gpu:8188", "http://gpu:8188", "http://gpu:8188/queue"),
        ("https://host/comfy/", "https://host/comfy", "https://host/comfy/queue"),
        (f"https://host/?token={SECRET}", "https://host", f"https://host/queue?token={SECRET}"),
        ("http://host:1/a%20b?x=%2F&y=1", "http://host:1/a%20b", "http://host:1/a%20b/queue?x=%2F&y=1"),
        (f"http://me:{SECRET}@host", "http://host", "http://host/queue"),
        ("[::1]:8188", "http://[::1]:8188", "http://[::1]:8188/queue"),
    ],
)
def test_what_is_shown_and_what_is_asked(text: str, shown: str, asked: str) -> None:
    address = Address(text)
    assert address.shown == shown and str(address.url("/queue")) == asked


@pytest.mark.parametrize("text", ["", "http://", "ftp://host", "http://host:port", f"ftp://a:{SECRET}@h?t={SECRET}"])
def test_what_is_no_address_is_said_without_its_secrets(text: str) -> None:
    with pytest.raises(InputError, match="no address") as caught:
        Address(text)
    assert caught.value.fix and SECRET not in str(caught.value)


def test_headers_from_the_command_line_and_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_text(f"\ufeff# of the gateway\r\nAuthorization: Bearer {SECRET}\r\n\r\nX-A:b:c\n", encoding="utf-8")
    assert read_headers([f"@{file}", "X-D:  e "]) == {"Authorization": f"Bearer {SECRET}", "X-A": "b:c", "X-D": "e"}
    for bad in (SECRET, f"Bad name: {SECRET}", f"X: {SECRET}\r\nY: z", f": {SECRET}"):
        with pytest.raises(InputError, match="no header") as caught:
            read_headers([bad])
        assert SECRET not in str(caught.value)
    with pytest.raises(InputError):
        read_headers(["@" + str(tmp_path / "none")])


@web.middleware
async def _gateway(request: web.Request, handler: Any) -> Any:
    """Lets in who has both the header and the query; answers others with what they sent, as careless gateways do."""
    if request.headers.get("X-Key") != SECRET or request.query.get("token") != SECRET:
        return web.Response(status=403, reason=f"not for {request.query.get('token')}")
    return await handler(request)


def test_every_route_gets_header_and_query(tmp_path: Path) -> None:
    async def go() -> None:
        async with FakeComfy(middlewares=[_gateway]) as fake:
            picture = tmp_path / "a.png"
            picture.write_bytes(b"picture")
            async with Client(f"{fake.url}/?token={SECRET}", headers={"X-Key": SECRET}) as client:
                await client.system()
                await client.object_info(["Loader"])
                await client.upload(picture)
                prompt_id = await client.queue(WORKFLOW)
                entry = await client.follow(prompt_id, WORKFLOW)
                assert fake.connections == 1, "by its websocket"
                await client.download(result_files(entry)[0], tmp_path / "a.mp4")
                await client.cancel(prompt_id)

    play(go())
    assert (tmp_path / "a.mp4").read_bytes() == b"film" * 1000


@pytest.mark.parametrize("key", [SECRET, SECRET + "-wrong"])
def test_a_gateway_that_repeats_the_token(key: str) -> None:
    """In the reason of its status, in the body, in an error of the work."""

    async def run(fake: FakeComfy, prompt_id: str) -> None:
        data = {"node_id": "2", "exception_type": "E", "exception_message": f"seen: {SECRET}", "traceback": [SECRET]}
        await fake.end(prompt_id, [["execution_error", data]])

    async def go() -> None:
        async with FakeComfy(run, middlewares=[_gateway]) as fake:
            async with Client(f"{fake.url}?token={SECRET}", headers={"X-Key": key}) as client:
                await client.follow(await client.queue(WORKFLOW), WORKFLOW)

    with pytest.raises(ServerError) as caught:
        play(go())
    text = str(caught.value) + repr(caught.value) + repr(caught.value.args)
    assert SECRET not in text and "(hidden)" in text
    assert "--header" in text or key == SECRET


@pytest.mark.parametrize("route", ["/system_stats", "/prompt", "/ws", "/view"])
def test_what_is_redirected_elsewhere_takes_no_header_along(route: str, tmp_path: Path) -> None:
    seen: list[dict[str, str]] = []

    async def thief(request: web.Request) -> web.Response:
        seen.append(dict(request.headers) | dict(request.query))
        return web.json_response({})

    async def go() -> None:
        elsewhere = web.Application()
        elsewhere.router.add_route("*", "/{path:.*}", thief)
        async with TestServer(elsewhere) as other:

            @web.middleware
            async def away(request: web.Request, handler: Any) -> Any:
                if request.path == route:
                    raise web.HTTPTemporaryRedirect(str(other.make_url("/there?a=1")))
                return await handler(request)

            async with FakeComfy(lambda fake, i: fake.end(i), middlewares=[away]) as fake:
                async with Client(f"{fake.url}/?token={SECRET}", headers={"X-Key": SECRET}) as client:
                    await client.system()
                    await client.follow(await client.queue(WORKFLOW), WORKFLOW)
                    await client.download({"filename": "a.mp4"}, tmp_path / "a.mp4")

    if route == "/ws":  # the history is asked instead
        play(go())
    else:
        with pytest.raises(ServerError, match="redirects to http") as caught:
            play(go())
        assert SECRET not in str(caught.value)
    assert not seen


ASK = """
import asyncio, sys
from hlwq_core.client.client import Client
from hlwq_core.errors import HLWQError
async def ask():
    async with Client(sys.argv[1]) as client:
        await client.system()
try:
    asyncio.run(ask())
except HLWQError as error:
    sys.exit(str(error))
"""


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_a_certificate_of_ones_own(tmp_path: Path) -> None:
    """Refused with a way out, and taken where SSL_CERT_FILE names it."""
    key, certificate = tmp_path / "key.pem", tmp_path / "own.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    async def ask(url: str, variables: dict[str, str]) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", ASK, url, cwd=REPO, stderr=asyncio.subprocess.PIPE, env={**os.environ, **variables}
        )
        _, said = await process.communicate()
        return process.returncode, said.decode()

    async def go() -> None:
        async with FakeComfy(tls=context) as fake:
            code, said = await ask(fake.url, {})
            assert code and "SSL_CERT_FILE" in said and "certificate" in said.lower(), said
            assert await ask(fake.url, {"SSL_CERT_FILE": str(certificate)}) == (0, "")

    asyncio.run(asyncio.wait_for(go(), 50))


GARBAGE = ["", "null", "[]", "5", '"x"', "<html>", "[" * 100_000, "\xff"]
OBJECTS = ['{"system": 5}', '{"prompt_id": 5}', '{"a": []}']


@pytest.mark.parametrize("route", ["/object_info/Loader", "/upload/image", "/prompt", "/queue", "/history"])
def test_a_server_that_answers_garbage(route: str, tmp_path: Path) -> None:
    """An error in words, whatever comes instead of what was asked for."""
    picture = tmp_path / "a.png"
    picture.write_bytes(b"picture")
    answer = ""

    @web.middleware
    async def garbage(request: web.Request, handler: Any) -> Any:
        if request.path.startswith(route):
            return web.Response(body=answer.encode("latin-1"), content_type="application/json")
        return await handler(request)

    async def ask(url: str) -> None:
        async with Client(url, patience=0.2) as client:
            await client.object_info(["Loader"])
            await client.upload(picture)
            await client.follow(await client.queue(WORKFLOW), WORKFLOW)

    async def go() -> None:
        nonlocal answer
        async with FakeComfy(lambda fake, i: asyncio.sleep(20), middlewares=[garbage]) as fake:
            # An object without the prompt is an answer to the last: it waits.
            for answer in GARBAGE + (OBJECTS if route != "/history" else []):
                with pytest.raises(HLWQError) as caught:
                    await asyncio.wait_for(ask(fake.url), 10)
                assert caught.value.fix, answer

    play(go())
