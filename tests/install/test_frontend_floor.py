"""The floor under the frontend: stated once, and said when it is not met."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from types import ModuleType

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def extension(pack: ModuleType) -> ModuleType:
    import comfyui_hlwq.nodes.extension

    return comfyui_hlwq.nodes.extension


def test_the_floor_is_the_one_of_requirements(extension: ModuleType) -> None:
    lines = (REPO / "requirements.txt").read_text().split()
    assert f"comfyui-frontend-package>={extension.FRONTEND_FLOOR}" in lines


@pytest.mark.parametrize(
    ("version", "said"), [("1.47.11", True), ("1.5.99", True), ("1.47.12", False), ("2.0.0", False)]
)
def test_an_old_frontend_is_named(
    extension: ModuleType, monkeypatch: pytest.MonkeyPatch, version: str, said: bool
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    reason = extension.old_frontend()
    assert bool(reason) == said
    assert reason is None or (version in reason and "update ComfyUI" in reason)


def test_a_frontend_of_the_users_own_is_none_of_our_business(
    extension: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert extension.old_frontend() is None
