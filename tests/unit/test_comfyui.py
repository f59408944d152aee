"""One answer to where ComfyUI is, for a server of our own and for downloads; also where the pack is linked into custom_nodes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hlwq_core import comfyui
from hlwq_core.errors import InputError

REPO = Path(__file__).resolve().parents[2]
ASK = (
    "from hlwq_core import comfyui; from hlwq_core.tools.download import default_folder;"
    "print(comfyui.program()); print(default_folder('someone/name'))"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ComfyUI as far as its folders go."""
    root = tmp_path / "ComfyUI"
    for name in ("comfy", "models", "custom_nodes"):
        (root / name).mkdir(parents=True)
    for name in ("main.py", "nodes.py"):
        (root / name).touch()
    return root


def ask(cwd: Path, **variables: str) -> list[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("COMFYUI_PATH", "PWD", "PYTHONPATH")} | variables
    done = subprocess.run([sys.executable, "-c", ASK], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("how", ["copied", "linked, from inside", "linked, by PYTHONPATH"])
def test_the_pack_in_custom_nodes_finds_its_comfyui(folder: Path, tmp_path: Path, how: str) -> None:
    pack = folder / "custom_nodes" / "ComfyUI-HLWQ"
    if how == "copied":
        shutil.copytree(REPO / "hlwq_core", pack / "hlwq_core", ignore=shutil.ignore_patterns("__pycache__"))
        said = ask(pack)
    else:
        pack.symlink_to(REPO, target_is_directory=True)
        said = ask(pack, PWD=str(pack)) if "inside" in how else ask(tmp_path, PYTHONPATH=str(pack))
    assert said == [str(folder), str(folder / "models" / "hlwq" / "name")]


def test_both_take_the_folder_that_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(folder))
    assert comfyui.program() == comfyui.base() == folder
    assert comfyui.program(folder) == folder


def test_a_folder_that_is_no_comfyui_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="not a ComfyUI"):
        comfyui.program(tmp_path)
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(InputError, match="not a ComfyUI"):
        comfyui.program()


def test_models_may_lie_apart_from_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI Desktop: the base directory has models/ and custom_nodes/, and no main.py."""
    pack = tmp_path / "Documents" / "ComfyUI" / "custom_nodes" / "ComfyUI-HLWQ"
    pack.mkdir(parents=True)
    (tmp_path / "Documents" / "ComfyUI" / "models").mkdir()
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(comfyui, "PACK", pack)
    assert comfyui.base() == tmp_path / "Documents" / "ComfyUI"
    with pytest.raises(InputError, match="no ComfyUI to work with"):
        comfyui.program()


def test_where_there_is_none_both_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comfyui, "PACK", tmp_path / "elsewhere")
    for named in ("", str(tmp_path)):
        monkeypatch.setenv("COMFYUI_PATH", named)
        for question in (comfyui.program, comfyui.base):
            with pytest.raises(InputError) as caught:
                question()
            assert "COMFYUI_PATH" in str(caught.value.fix)
