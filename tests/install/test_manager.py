"""ComfyUI-Manager and the pack: its scanner finds every node; it installs, disables and removes the pack, offline."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import json
import os
import shutil
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[2]
URL = "https://github.com/hlwq/ComfyUI-HLWQ"
CHANNEL = "https://raw.githubusercontent.com/Comfy-Org/ComfyUI-Manager/main/custom-node-list.json"


def scanned(path: Path) -> set[str]:
    """Node ids by the rule of the Manager's scanner (2.0.13): a class derived from ComfyNode, and the literal id in its
    Schema call; the class's own name where there is none."""
    found = set()
    for cls in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(cls, ast.ClassDef):
            continue
        bases = {base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in cls.bases}
        if "ComfyNode" not in bases:
            continue
        ids = set()
        for call in ast.walk(cls):
            if isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[-1] == "Schema":
                values = [word.value for word in call.keywords if word.arg == "node_id"]
                ids |= {str(value.value) for value in values if isinstance(value, ast.Constant)}
        found |= ids or {cls.name}
    return found


def all_scanned() -> set[str]:
    return set().union(*(scanned(path) for path in (REPO / "nodes").rglob("*.py")))


def test_scanner_finds_every_node(pack: ModuleType) -> None:
    async def ids() -> set[str]:
        return {node.GET_SCHEMA().node_id for node in await (await pack.comfy_entrypoint()).get_node_list()}

    assert all_scanned() == asyncio.run(ids())


def request(url: str, data: Any = None) -> Any:
    """GET, or POST where there is data; the answer's JSON, or its text."""
    body = None if data is None else json.dumps(data).encode()
    asked = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=30) as answer:
        text = answer.read().decode()
    return json.loads(text) if text.startswith(("{", "[")) else text


def wait(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {seconds:.0f} s")


def task(server: Any, kind: str, params: dict[str, Any]) -> None:
    """Queue one task of the Manager and wait for its end."""
    ui_id = str(uuid.uuid4())
    manager = server.url + "/v2/manager/queue"
    request(f"{manager}/task", {"ui_id": ui_id, "client_id": "test", "kind": kind, "params": params})
    request(f"{manager}/start", {})

    def ended() -> Any:
        return request(f"{manager}/history?ui_id={ui_id}").get("history")

    entry = wait(ended, 60, f"{kind} by the Manager")
    assert entry["result"] == "success", f"{entry}\n{server.tail(40)}"


def loaded(server: Any) -> set[str]:
    return {name for name in request(server.url + "/object_info") if name.startswith("HLWQ")}


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base directory whose Manager is offline, knows the pack from its channel's cache, and clones it from here."""
    source = tmp_path / "source"
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True, check=True, timeout=30
    ).stdout.split("\0")
    for name in names:
        if name and (REPO / name).is_file() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPO / name, source / name)
    config = tmp_path / "gitconfig"
    config.write_text(
        f'[url "{source.as_uri()}"]\n\tinsteadOf = {URL}\n[user]\n\tname = t\n\temail = t@localhost\n'
        "[safe]\n\tdirectory = *\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_TERMINAL_PROMPT", "0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # all that the pack needs came with ComfyUI
    for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-qm", "the pack"]):
        subprocess.run(["git", *command], cwd=source, check=True, timeout=60, env=os.environ)

    base = tmp_path / "base"
    manager = base / "user" / "__manager"
    (manager / "cache").mkdir(parents=True)
    for folder in ("custom_nodes", "models", "input", "output"):
        (base / folder).mkdir()
    (manager / "config.ini").write_text(
        "[default]\nnetwork_mode = offline\nsecurity_level = normal\nuse_uv = false\nfile_logging = false\n"
    )
    pack = {"author": "hlwq", "title": "HLWQ", "id": "comfyui-hlwq", "reference": URL, "files": [URL]}
    listed = {"custom_nodes": [pack | {"install_type": "git-clone", "description": ""}]}
    number = 0
    for char in CHANNEL:  # the name that the Manager gives to a cached address
        number = (number * 31 + ord(char)) % 2**32
    (manager / "cache" / f"{number}_custom-node-list.json").write_text(json.dumps(listed))
    return base


@pytest.mark.slow
@pytest.mark.timeout(420)
@pytest.mark.skipif(importlib.util.find_spec("comfyui_manager") is None, reason="comfyui-manager is not installed")
@pytest.mark.skipif(shutil.which("git") is None or not (REPO / ".git").exists(), reason="needs git")
def test_manager_installs_disables_and_removes_the_pack(base: Path, comfyui_path: Path) -> None:
    from hlwq_core.client.server import LocalServer

    custom = base / "custom_nodes"
    folder = custom / "ComfyUI-HLWQ"

    def comfyui() -> LocalServer:
        extra = ["--cpu", "--disable-api-nodes", "--enable-manager"]
        return LocalServer(comfyui_path, base=base, extra=extra, timeout=150, log=base / "comfyui.log")

    with comfyui() as server:
        assert not loaded(server)
        params = {"id": "ComfyUI-HLWQ", "version": "unknown", "selected_version": "unknown"}
        task(server, "install", params | {"mode": "cache", "channel": "default"})
        assert (folder / "__init__.py").is_file(), server.tail(40)

    with comfyui() as server:
        assert loaded(server) == all_scanned(), server.tail(60)
        assert "HLWQ" in json.dumps(request(server.url + "/v2/customnode/installed"))
        task(server, "disable", {"node_name": "ComfyUI-HLWQ", "is_unknown": True})
        assert not folder.exists() and (custom / ".disabled").is_dir()

    with comfyui() as server:
        assert not loaded(server)
        task(server, "uninstall", {"node_name": "ComfyUI-HLWQ", "is_unknown": True})
        assert not list(custom.rglob("__init__.py"))
