"""A real ComfyUI whose models folder holds everything that it should not: it starts, and its node definitions come at once."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.attacks import folders
from tests.conftest import REPO, SERVER_ARGS, environment

CODES = folders.safetensors({"a.weight__packed": folders.tensor([4], 0, 4, "U8")}, bytes(4))
NODES = len(list((REPO / "web" / "docs").glob("HLWQ*.md")))  # every node has its page


@pytest.fixture(scope="module")
def hostile(comfyui_path: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from hlwq_core.client.server import LocalServer

    base = tmp_path_factory.mktemp("hostile-base")
    for folder in ("output", "input", "user", "custom_nodes"):
        (base / folder).mkdir()
    environment.link_tree(tiny / "models", base / "models")
    (base / "custom_nodes" / "ComfyUI-HLWQ").symlink_to(REPO, target_is_directory=True)
    for name, attack in folders.ATTACKS.items():
        # Links that lead back and folders without end keep ComfyUI itself busy where it lists them: not in models/hlwq.
        kinds = ("hlwq",) if name in folders.FOLDERS else ("hlwq", "checkpoints", "diffusion_models")
        for kind in kinds[:1] if "MB" in name else kinds:
            target = base / "models" / kind / name.replace("/", "_")
            target.mkdir(parents=True)
            attack(target)
    folders.many_files(20_000)(base / "models" / "hlwq")
    log = base / "comfyui.log"
    extra = [*SERVER_ARGS, "--disable-api-nodes", "--output-directory", str(base / "output")]
    try:
        with LocalServer(comfyui_path, base=base, extra=extra, timeout=150, log=log) as running:
            yield running
    finally:
        folders.remove_deep_tree(base / "models" / "hlwq" / "a tree 1,900 deep")


def definitions(server: Any, node: str = "") -> tuple[dict[str, Any], float]:
    started = time.monotonic()
    with urllib.request.urlopen(f"{server.url.rstrip('/')}/object_info{node}", timeout=60) as answer:
        found = json.load(answer)
    return found, time.monotonic() - started


def options(server: Any) -> list[str]:
    found = definitions(server, "/HLWQLoadCheckpoint")[0]["HLWQLoadCheckpoint"]["input"]["required"]["checkpoint"]
    return found[1]["options"] if isinstance(found[0], str) else found[0]


def test_every_node_is_there(hostile: Any) -> None:
    found, _ = definitions(hostile)
    assert len([name for name in found if name.startswith("HLWQ")]) == NODES
    log = hostile.log.read_text("utf-8", "replace")
    assert "IMPORT FAILED" not in log and "does not list" in log
    assert "LTX-2.3-tiny-HLWQ-Q5" in options(hostile)


def test_definitions_come_at_once(hostile: Any) -> None:
    quickest = min(definitions(hostile, f"/{node}")[1] for node in ("HLWQLoadCheckpoint", "HLWQVerify") * 4)
    slowest = max(definitions(hostile, f"/{node}")[1] for node in ("HLWQLoadCheckpoint", "HLWQVerify") * 4)
    print(f"node definitions in {quickest * 1000:.0f} to {slowest * 1000:.0f} ms")
    assert slowest < 5, "the event loop is never kept waiting"


def test_what_is_added_shows_after_a_refresh(hostile: Any) -> None:
    (hostile.base / "models" / "checkpoints" / "new.safetensors").write_bytes(CODES)
    deadline = time.monotonic() + 30
    while "new.safetensors" not in options(hostile) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert "new.safetensors" in options(hostile)
