"""SECURITY.md: every promise names tests that are there; and those of its promises that no other room holds."""

from __future__ import annotations

import ast
import logging
import re
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from hlwq_core import cli
from hlwq_core.client.server import LocalServer
from hlwq_core.tools.download import download

from .tools.test_download import HLWQ, Hub, hub  # noqa: F401

REPO = Path(__file__).resolve().parents[2]
TEXT = (REPO / "SECURITY.md").read_text(encoding="utf-8")


def promises() -> list[str]:
    """The items of the sections that promise something."""
    promised = TEXT[TEXT.index("## Files") : TEXT.index("## What is not promised")]
    return re.findall(r"^- (.+?)(?=^- |^#|\Z)", promised, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("promise", promises(), ids=lambda text: re.sub(r"\W+", "-", text[:40]))
def test_every_promise_names_tests_that_are_there(promise: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", promise)
    assert named, "no test holds it"
    for file, name in named:
        tree = ast.parse((REPO / file).read_text(encoding="utf-8"))
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in functions and name.startswith("test_"), f"{file} has no {name}"


def test_there_are_promises_of_each_kind() -> None:
    assert len(promises()) >= 20
    assert re.findall(r"^## (.+)$", TEXT, re.MULTILINE)[:5] == ["Files", "Folders", "Network", "Processes", "Routes"]


def test_files_are_worked_on_without_a_network(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands that work on files look up no name and open no connection."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"a connection: {args}")

    for owner, name in ((socket.socket, "connect"), (socket.socket, "connect_ex"), (socket, "getaddrinfo")):
        monkeypatch.setattr(owner, name, refuse)
    checkpoint, original = str(golden / "mini_msb_infinite"), str(golden / "mini_original_bf16.safetensors")
    made = str(tmp_path / "made")
    assert cli.main(["inspect", checkpoint]) in (0, 1)
    assert cli.main(["verify", checkpoint]) in (0, 1)
    assert cli.main(["quantize", original, made, "--rules", "plain"]) == 0
    assert cli.main(["verify", made, "--against", original]) in (0, 1)
    assert cli.main(["repair", made, "--from", original]) in (0, 1)
    assert "a connection" not in capsys.readouterr().err


def test_a_token_is_written_nowhere(
    hub: Hub,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    hub.models[HLWQ] = {"a.safetensors": b"a" * 100, "config.json": b"{}"}
    hub.token = "hf_verysecret"
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert cli.main(["download", HLWQ, "--to", str(tmp_path / "x"), "--json"]) == 0
    hub.token = "hf_another"
    assert cli.main(["download", HLWQ, "--to", str(tmp_path / "x")]) == 2
    said = capsys.readouterr()
    everything = said.out + said.err + caplog.text
    everything += "".join(path.read_text("utf-8", "replace") for path in tmp_path.rglob("*") if path.is_file())
    assert "hf_verysecret" not in everything
    assert any(authorization == "Bearer hf_verysecret" for *_, authorization in hub.requests)


def test_our_comfyui_listens_on_this_machine_alone(tmp_path: Path) -> None:
    server = LocalServer(tmp_path, python=sys.executable)
    server._folder = tmp_path
    command = server.command(8188, cpu=True)
    assert command[command.index("--listen") + 1] == "127.0.0.1" and command.count("--listen") == 1
    assert download.__doc__ and "--enable-cors-header" not in command
