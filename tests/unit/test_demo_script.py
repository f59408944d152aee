"""scripts/demo.py without a ComfyUI: what it hands on, and that clones do not disturb each other."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hlwq_core.cli import parser

REPO = Path(__file__).resolve().parents[2]


def script(name: str, monkeypatch: pytest.MonkeyPatch, called: str | None = None) -> ModuleType:
    spec = importlib.util.spec_from_file_location(called or name, REPO / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    script("environment", monkeypatch)
    return script("demo", monkeypatch, "demo_under_test")


def handed_on(demo: ModuleType, *arguments: str) -> argparse.Namespace:
    """What `generate` reads out of the options that the demo gives it."""
    return parser().parse_args(["generate", *demo.read_options(list(arguments))[1]])


def test_small_by_default(demo: ModuleType) -> None:
    args = handed_on(demo)
    assert (args.width, args.height, args.frames, args.fps, args.steps) == (128, 128, 25, 24.0, 8)
    assert args.prompt == ["A cat playing piano in a jazz club"] and args.output == "hlwq-demo.mp4"


def test_options_of_generate_are_handed_on(demo: ModuleType) -> None:
    args = handed_on(
        demo, "--fps", "23.976", "--image", "a.png", "--lora", "x:0.5", "--upscale", "spatial", "--seed", "3"
    )
    assert args.fps == 23.976 and args.lora == ["x:0.5"] and args.upscale == "spatial" and args.seed == 3
    assert args.image == Path("a.png")
    assert handed_on(demo, "--comfyui-args", "--reserve-vram", "2").comfyui_args == ["--reserve-vram", "2"]


@pytest.mark.parametrize("given", [["--seconds", "2"], ["--seconds=2"]])
def test_a_length_in_seconds_replaces_the_frames(demo: ModuleType, given: list[str]) -> None:
    args = handed_on(demo, *given)
    assert args.seconds == 2 and args.frames is None


def test_several_prompts(demo: ModuleType, tmp_path: Path) -> None:
    assert handed_on(demo, "--prompt", "a", "--prompt", "b").prompt == ["a", "b"]
    assert handed_on(demo, "--prompts", "list.txt").prompt == []


def test_every_clone_has_a_folder_of_its_own(demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two clones that run at once share the cache: each ComfyUI must load the nodes of its own clone."""
    (tmp_path / "tiny" / "models").mkdir(parents=True)
    (tmp_path / "tiny" / "models" / "a").touch()
    environment = demo.Environment(Path(sys.executable), tmp_path, tmp_path / "cache")
    monkeypatch.setattr(demo, "tiny_model", lambda environment: tmp_path / "tiny")
    bases = []
    for clone in ("one", "two"):
        (tmp_path / clone).mkdir()
        monkeypatch.setattr(demo, "REPO", tmp_path / clone)
        bases.append(demo.base_directory(environment))
    for clone, base in zip(("one", "two"), bases, strict=True):
        assert (base / "custom_nodes" / "ComfyUI-HLWQ").resolve() == tmp_path / clone
        assert (base / "models" / "a").is_file()


def test_nothing_here_needs_torchaudio() -> None:
    """ComfyUI no longer asks for it: the demo and its tiny model must work without."""
    for path in [
        *(REPO / "scripts").rglob("*.py"),
        *(REPO / "hlwq_core").rglob("*.py"),
        *(REPO / "nodes").rglob("*.py"),
    ]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] == "torchaudio"], path.name
