"""The floor under the frontend: stated once, and said when it is not met."""

from __future__ import annotations

import asyncio
import importlib.metadata
from pathlib import Path
from types import ModuleType

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def floor(pack: ModuleType) -> ModuleType:
    import comfyui_hlwq.nodes.frontend_floor

    return comfyui_hlwq.nodes.frontend_floor


def test_the_floor_is_the_one_of_requirements(floor: ModuleType) -> None:
    lines = (REPO / "requirements.txt").read_text().split()
    assert f"comfyui-frontend-package>={floor.FRONTEND_FLOOR}" in lines


@pytest.mark.parametrize(
    ("version", "said"), [("1.47.11", True), ("1.5.99", True), ("1.47.12", False), ("2.0.0", False)]
)
def test_an_old_frontend_is_named(floor: ModuleType, monkeypatch: pytest.MonkeyPatch, version: str, said: bool) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    reason = floor.old_frontend()
    assert bool(reason) == said
    assert reason is None or (version in reason and "update ComfyUI" in reason)


def test_a_frontend_of_the_users_own_is_none_of_our_business(
    floor: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert floor.old_frontend() is None


def test_it_is_said_when_the_pack_is_loaded(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def load() -> None:
        await (await pack.comfy_entrypoint()).on_load()

    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0.0")
    with caplog.at_level("WARNING", logger="hlwq"):
        asyncio.run(load())
    assert "frontend 1.0.0 is older" in caplog.text
