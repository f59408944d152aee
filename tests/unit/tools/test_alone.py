"""Locks: one run a target, in a folder that only their user can write into, whatever others put into the shared one."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hlwq_core.errors import InputError
from hlwq_core.tools.alone import alone, lock_folder

posix = pytest.mark.skipif(not hasattr(os, "getuid"), reason="folders have no owner here")


@pytest.fixture(autouse=True)
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shared temporary folder, and a home."""
    folder = tmp_path / "shared"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(folder))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    return folder


def test_the_second_is_refused_and_nothing_is_left_beside_the_target(tmp_path: Path) -> None:
    target = tmp_path / "models" / "out"
    target.parent.mkdir()
    with alone(target), pytest.raises(InputError, match="another run") as refused, alone(target):
        pass
    assert "wait" in (refused.value.fix or "") and not list(target.parent.iterdir())
    with alone(target):
        pass


def test_one_target_by_two_names(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out", target_is_directory=True)
    with alone(tmp_path / "out"), pytest.raises(InputError, match="another run"), alone(tmp_path / "link"):
        pass


def test_a_killed_run_holds_nothing(tmp_path: Path, shared: Path) -> None:
    code = (
        "import os, sys, tempfile; from pathlib import Path; tempfile.gettempdir = lambda: sys.argv[1];"
        "from hlwq_core.tools.alone import alone\nwith alone(Path(sys.argv[2])): os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(shared), str(tmp_path / "out")], check=False)
    with alone(tmp_path / "out"):
        pass


@posix
def test_the_folder_is_the_users_alone(shared: Path) -> None:
    folder = lock_folder()
    assert folder.parent == shared and stat.S_IMODE(folder.stat().st_mode) == 0o700


@posix
@pytest.mark.parametrize("what", ["another's folder", "open to all", "a link", "a file", "a FIFO"])
def test_what_another_user_put_there_is_left_alone(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    user = os.getuid()
    if what == "another's folder":
        user += 1
        monkeypatch.setattr(os, "getuid", lambda: user)  # then what this process makes is another's
    place = shared / f"hlwq-locks-{user}"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if what == "a link":
        place.symlink_to(elsewhere, target_is_directory=True)
    elif what == "a file":
        place.write_text("")
    elif what == "a FIFO":
        os.mkfifo(place)
    else:
        place.mkdir()
        place.chmod(0o777)
    if what == "another's folder":
        with pytest.raises(InputError, match="no folder for locks") as refused, alone(tmp_path / "out"):
            pass
        assert str(place) in str(refused.value.found) and "TMPDIR" in (refused.value.fix or "")
        return
    with alone(tmp_path / "out"):
        assert lock_folder().is_relative_to(tmp_path / "home")
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize(
    "error", [OSError(37, "No locks available"), NotImplementedError("no flock"), PermissionError(13, "no")]
)
def test_a_system_that_does_not_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    from hlwq_core.tools import alone as module

    def refuse(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(module.FileLock, "acquire", refuse)
    with pytest.raises(InputError, match="cannot be locked"), alone(tmp_path / "out"):
        pass


def test_a_read_only_temporary_folder(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Path.mkdir

    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        if self.parent == shared:
            raise OSError(30, "Read-only file system")
        make(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", refuse)
    with alone(tmp_path / "out"):
        assert lock_folder().is_relative_to(tmp_path / "home")
