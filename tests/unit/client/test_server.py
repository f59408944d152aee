"""A server of our own: it starts, says why not, and ends with all its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hlwq_core.client.server import LocalServer
from hlwq_core.errors import ServerError

REPO = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.timeout(60)


FAKE_MAIN = """
import http.server, json, os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
open(os.environ["FAKE_PIDS"], "w").write(f"{os.getpid()} {child.pid}")
print("fake ComfyUI", sys.argv[1:], flush=True)
if "--die" in sys.argv: sys.exit("the reason is in the last line")
if "--hang" in sys.argv: child.wait()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(json.dumps({"system": {}}).encode())
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def fake_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "ComfyUI"
    (folder / "comfy").mkdir(parents=True)
    (folder / "nodes.py").touch()
    (folder / "main.py").write_text(FAKE_MAIN)
    monkeypatch.setenv("FAKE_PIDS", str(tmp_path / "pids"))
    return folder


def alive(pids: Path) -> list[int]:
    """Which of the fake's two processes still run (zombies do not)."""

    def runs(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except OSError:
            return False

    return [int(p) for p in pids.read_text().split() if runs(int(p))]


def gone(pids: Path) -> bool:
    end = time.monotonic() + 5
    while alive(pids) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pids)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_our_server_starts_and_ends_with_all_its_processes(fake_folder: Path, tmp_path: Path) -> None:
    with LocalServer(fake_folder, extra=["--cpu"], timeout=20) as server:
        assert len(alive(tmp_path / "pids")) == 2
        assert "--disable-auto-launch" in server.tail()
        folder = server.log.parent
        server.check()
    assert gone(tmp_path / "pids") and not folder.exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("flag", "timeout", "says"), [("--die", 60, "the reason is in the last line"), ("--hang", 8, "within 8 s")]
)
def test_a_server_that_does_not_come_up_shows_its_log(
    fake_folder: Path, tmp_path: Path, flag: str, timeout: float, says: str
) -> None:
    with (
        pytest.raises(ServerError, match=says) as caught,
        LocalServer(fake_folder, extra=["--cpu", flag], timeout=timeout),
    ):
        pass
    assert "fake ComfyUI" in str(caught.value)
    assert gone(tmp_path / "pids")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_stopping_the_command_ends_the_server(fake_folder: Path, tmp_path: Path, signal_: signal.Signals) -> None:
    command = [sys.executable, "-m", "hlwq_core", "generate", "--prompt", "x", "--comfyui", str(fake_folder)]
    process = subprocess.Popen(
        [*command, "--output", str(tmp_path / "x.mp4"), "--comfyui-args", "--cpu", "--hang"],
        cwd=REPO,
        stderr=subprocess.PIPE,
    )
    try:
        end = time.monotonic() + 30
        while not (tmp_path / "pids").exists() and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.2)
        assert len(alive(tmp_path / "pids")) == 2
        process.send_signal(signal_)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 130, said.decode()
        assert b"stopped" in said
        assert gone(tmp_path / "pids")
    finally:
        process.kill()
        if (tmp_path / "pids").exists():
            for pid in alive(tmp_path / "pids"):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("whom", ["process", "group", "while it starts", "from a thread", "children too"])
def test_killing_the_command_ends_the_server_too(fake_folder: Path, tmp_path: Path, whom: str) -> None:
    """kill -9 is seen by no handler: the server, its children and its folder would stay."""
    code = (
        "import sys, threading, time; from pathlib import Path; from hlwq_core.client.server import LocalServer\n"
        "def run():\n"
        "    with LocalServer(Path(sys.argv[1]), extra=sys.argv[2:], timeout=60) as server:\n"
        "        print(server.url, flush=True); time.sleep(100)\n"
    )
    code += "threading.Thread(target=run).start()" if whom == "from a thread" else "run()"
    folders = tmp_path / "temp"
    folders.mkdir()
    extra = ["--cpu", *(["--hang"] if whom == "while it starts" else [])]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(fake_folder), *extra],
        cwd=REPO,
        env={**os.environ, "TMPDIR": str(folders)},
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 40
        while not (tmp_path / "pids").exists() and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.5)
        assert len(alive(tmp_path / "pids")) == 2 and list(folders.glob("hlwq-comfyui-*"))
        if whom == "group":
            os.killpg(process.pid, signal.SIGKILL)
        elif whom == "children too":  # as Ray ends a worker: first the processes whose parent it is
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            process.send_signal(signal.SIGSTOP)
            for child in children:
                os.kill(int(child), signal.SIGKILL)
            process.kill()
        else:
            process.kill()
        process.wait()
        assert gone(tmp_path / "pids")
        end = time.monotonic() + 10
        while list(folders.glob("hlwq-comfyui-*")) and time.monotonic() < end:
            time.sleep(0.05)
        assert not list(folders.glob("hlwq-comfyui-*"))
    finally:
        process.kill()
        for pid in alive(tmp_path / "pids") if (tmp_path / "pids").exists() else ():
            os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kill -9")
@pytest.mark.parametrize("moment", ["free_port", "_link_base", "bound", "Popen"])
def test_killed_while_the_server_is_made_its_folder_goes(fake_folder: Path, tmp_path: Path, moment: str) -> None:
    """Found by killing Ray's actors: between the folder and the watcher of its process there was nobody who would remove it."""
    code = (
        "import os, signal, sys; from pathlib import Path; from hlwq_core.client import server\n"
        "def kill(*a, **k): print(*Path(os.environ['TMPDIR']).iterdir(), flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
        "place = server.subprocess if sys.argv[2] == 'Popen' else server\n"
        "begin = server.Lifeline.__init__\n"
        "def then(*a): begin(*a); setattr(place, sys.argv[2], kill)\n"
        "server.Lifeline.__init__ = then\n"
        "server.LocalServer(Path(sys.argv[1]), cpu=True, alone=True).launch()\n"
    )
    folders = tmp_path / "temp"
    folders.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, str(fake_folder), moment],
        cwd=REPO, env={**os.environ, "TMPDIR": str(folders)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "hlwq-comfyui-" in done.stdout, "it was there"
    end = time.monotonic() + 20
    while list(folders.iterdir()) and time.monotonic() < end:
        time.sleep(0.05)
    assert not list(folders.iterdir())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_server_outlives_the_thread_that_started_it(fake_folder: Path, tmp_path: Path) -> None:
    """The kernel takes the end of a thread for the parent's."""
    import threading

    server = LocalServer(fake_folder, extra=["--cpu"], timeout=30)
    thread = threading.Thread(target=server.__enter__)
    thread.start()
    thread.join()
    try:
        time.sleep(0.3)
        assert len(alive(tmp_path / "pids")) == 2
        server.check()
    finally:
        server.stop()
    assert gone(tmp_path / "pids")


def test_the_watcher_spares_a_process_that_has_the_number_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours ended before we did, and another one began since."""
    import io

    from hlwq_core.client import watcher

    folder = tmp_path / "folder"
    folder.mkdir()
    began = iter(["100", "200"])
    monkeypatch.setattr(watcher, "began", lambda pid: next(began))
    monkeypatch.setattr(watcher, "end", lambda pid: pytest.fail("another process"))
    monkeypatch.setattr(sys, "argv", ["watcher.py", str(folder)])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"pid 4711\n")))
    watcher.main()
    assert not folder.exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ends a process group")
def test_the_watcher_acts_only_where_nobody_said_that_it_is_done(tmp_path: Path) -> None:
    from hlwq_core.client import watcher

    assert watcher.__file__
    folder = tmp_path / "folder"
    folder.mkdir()
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        command = [sys.executable, "-I", "-S", watcher.__file__, str(folder)]
        subprocess.run(command, input=b"pid %d\ndone\n" % other.pid, check=True, timeout=20)
        assert other.poll() is None and folder.is_dir()
        subprocess.run(command, input=b"pid %d\n" % other.pid, check=True, timeout=20)
        assert other.wait(10) != 0 and not folder.exists()
    finally:
        other.kill()
        other.wait()


@pytest.mark.skipif(os.name == "nt", reason="a job of Windows does it")
@pytest.mark.parametrize("begins", [True, False])
def test_a_child_begins_only_when_it_is_watched_over(tmp_path: Path, begins: bool) -> None:
    """Killed between the start of the child and that of its watcher, we left it alone."""
    from hlwq_core.client.lifeline import Lifeline, bound

    folder, mark = tmp_path / "folder", tmp_path / "ran"
    folder.mkdir()
    code = f"import sys; open({str(mark)!r}, 'w').write(repr(sys.stdin.read()))"
    command = bound([sys.executable, "-c", code])
    child = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True)
    assert child.stdin is not None
    if begins:
        lifeline = Lifeline(folder)
        lifeline.watch(child)
        assert child.wait(20) == 0 and mark.read_text() == "''", "its standard input is empty"
        lifeline.release()
    else:
        time.sleep(0.3)
        child.stdin.close()  # what our death does
        assert child.wait(20) == 1 and not mark.exists()


def test_tidying_passes_over_folders_that_are_renamed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that writes pictures gives their folder its name at the end; what was made must not be lost by that."""
    server = LocalServer.__new__(LocalServer)
    server._folder = tmp_path
    output = tmp_path / "output"
    (output / "unfinished").mkdir(parents=True)
    for number in range(12):
        (output / f"{number}.mp4").write_bytes(b"x" * 10)
        os.utime(output / f"{number}.mp4", (number, number))
    scan = os.scandir

    def renamed(path: Any = ".") -> Any:
        if str(path).endswith("unfinished"):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", renamed)
    server.tidy(limit=100)
    assert sorted(path.name for path in output.glob("*.mp4")) == sorted(f"{n}.mp4" for n in range(2, 12))
