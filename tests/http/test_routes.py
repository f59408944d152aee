"""The routes of the front end: reports by name only, from ComfyUI's own page only."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest

import hlwq_core

TINY = "LTX-2.3-tiny-HLWQ-Q5"


def ask(server: Any, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(server.url.rstrip("/") + path, body, names)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_report(server, server_backend):
    status, body = ask(server, f"/hlwq/checkpoint?name={TINY}")
    report = json.loads(body)
    assert status == 200
    assert report["complete"] and report["missing"] == 0
    assert report["quantized"] + report["plain"] == report["expected"]
    assert report["vram"]["needed_bytes"] < report["size_bytes"]
    assert report["version"] == hlwq_core.__version__
    assert report["backend"]["name"] == server_backend
    assert bool(report["backend"]["unavailable"].get("cuda")) == (server_backend != "cuda")


def test_coverage_picture(server):
    status, body = ask(server, f"/hlwq/coverage?name={TINY}")
    assert status == 200
    assert body.startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["", "no-such-checkpoint", "../hlwq", "/etc", "..%2F..%2Fetc", "C:%5CWindows"])
def test_only_known_names(server, name):
    for route in ("checkpoint", "coverage"):
        status, body = ask(server, f"/hlwq/{route}?name={name}")
        assert status == 422
        assert "what to do: " in json.loads(body)["error"]


def test_only_known_repositories(server):
    body = json.dumps({"repository": "somebody/else"}).encode()
    status, answer = ask(server, "/hlwq/download", body, Content_Type="application/json")
    assert status == 422
    assert "unknown repository" in json.loads(answer)["error"]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b'{"name": "x"}', {"Content_Type": "text/plain"}, 415),
        (b'{"name": "x"}', {"Content_Type": "application/json", "Origin": "https://example.org"}, 403),
        (b'{"name": "x"}', {"Content_Type": "application/json", "Sec_Fetch_Site": "cross-site"}, 403),
        (b'{"name": ["x"]}', {"Content_Type": "application/json"}, 400),
        (b"[]", {"Content_Type": "application/json"}, 400),
        (b"{", {"Content_Type": "application/json"}, 400),
    ],
)
def test_foreign_requests_are_refused(server, body, headers, status):
    assert ask(server, "/hlwq/verify", body, **headers)[0] == status
