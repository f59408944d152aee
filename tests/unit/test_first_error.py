"""What failed first is told: cleaning up behind it, on a read-only or a vanished disk, fails as well and says nothing."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from hlwq_core.client.client import Client
from hlwq_core.client.server import LocalServer
from hlwq_core.commands import inspect as inspect_command
from hlwq_core.errors import FormatError, HLWQError, InputError, ServerError
from hlwq_core.format.writer import write_safetensors

from .client.fake_comfy import FakeComfy


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on nothing can be renamed or removed, as where a disk was remounted read-only."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(30, "Read-only file system")

    for name in ("replace", "rename", "unlink", "remove", "rmdir"):
        monkeypatch.setattr(os, name, refuse)


def test_a_written_file(tmp_path: Path, read_only: None) -> None:
    entries = [("x", torch.float32, (2,), lambda: torch.ones(2))]
    with pytest.raises(InputError, match="cannot be written") as caught:
        write_safetensors(tmp_path / "x.safetensors", entries)
    assert "Read-only" in str(caught.value.found)


def test_a_written_file_whose_tensor_is_wrong(tmp_path: Path, read_only: None) -> None:
    entries = [("x", torch.float32, (2,), lambda: torch.ones(3))]
    with pytest.raises(FormatError, match="not what was announced"):
        write_safetensors(tmp_path / "x.safetensors", entries)


def test_a_picture(tmp_path: Path, read_only: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    from hlwq_core.tools import inspect

    monkeypatch.setattr(inspect, "coverage_picture", lambda found: Image.new("L", (2, 2)))
    with pytest.raises(InputError, match="cannot be written") as caught:
        inspect_command._save(None, tmp_path / "x.png")  # type: ignore[arg-type]
    assert "Read-only" in str(caught.value.found)


@pytest.mark.parametrize("cut", [0, 10])
def test_a_fetched_result(tmp_path: Path, read_only: None, cut: int) -> None:
    async def go() -> None:
        async with FakeComfy() as fake, Client(fake.url, patience=0.3) as client:
            fake.cut = cut
            await client.download({"filename": "a.mp4"}, tmp_path / "a.mp4")

    with pytest.raises(HLWQError) as caught:
        asyncio.run(go())
    assert isinstance(caught.value, ServerError if cut else InputError)


def test_a_file_that_cannot_be_read_for_an_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"x")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    async def go() -> None:
        async with FakeComfy() as fake, Client(fake.url) as client:
            monkeypatch.setattr(Path, "open", refuse)
            await client.upload(tmp_path / "a.png")

    with pytest.raises(InputError, match="cannot be read"):
        asyncio.run(go())


def comfyui(folder: Path) -> Path:
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").write_text("raise SystemExit('the reason')")
    (folder / "nodes.py").touch()
    return folder


def test_a_server_that_hangs_as_it_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why it was ended is the error; its folder goes."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    server = LocalServer(comfyui(tmp_path / "ComfyUI"), extra=["--cpu"], timeout=20)

    def hangs(self: Any, timeout: float | None = None) -> int:
        raise subprocess.TimeoutExpired("main.py", timeout or 0)

    with pytest.raises(ServerError, match="has ended"), monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, "wait", hangs)
        server.__enter__()
    assert not list(tmp_path.glob("hlwq-comfyui-*"))


@pytest.mark.parametrize("what", ["log", "python"])
def test_a_server_that_cannot_begin(tmp_path: Path, what: str) -> None:
    options: dict[str, Any] = (
        {"log": tmp_path / "nowhere" / "x.log"} if what == "log" else {"python": "/nowhere/python"}
    )
    with pytest.raises(ServerError, match=r"cannot be started|cannot run"):
        LocalServer(comfyui(tmp_path / "ComfyUI"), extra=["--cpu"], **options).__enter__()
