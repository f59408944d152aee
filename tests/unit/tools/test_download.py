"""Download, against a hub of our own on loopback: whole, interrupted, corrupted, refused, gone."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from hlwq_core.errors import DownloadError, InputError
from hlwq_core.format.record import read_record
from hlwq_core.models import ltx23
from hlwq_core.tools.download import check_name, default_folder, download
from hlwq_core.tools.verify import verify

from .killing import killed_at, needs_fork

REPO = Path(__file__).resolve().parents[3]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
HLWQ, POLARQUANT = ltx23.REPOSITORIES


class Hub:
    """The part of the hub that a download talks to: the listing of a model, and files with ranges."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, bytes]] = {}
        self.token: str | None = None
        self.listed_sha256: dict[str, str] = {}
        self.cut_after: int | None = None
        self.git_checksums = True
        self.gone = False
        self.gated = False
        self.ranges = True
        self.requests: list[tuple[str, str | None, str | None]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def do_GET(self) -> None:
                with contextlib.suppress(ConnectionError):
                    hub.answer(self, body=True)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)

    def answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        if self.gone:  # open connections outlive the listening socket: hang up on them
            request.close_connection = True
            return
        path = unquote(urlsplit(request.path).path)
        self.requests.append((path, request.headers.get("Range"), request.headers.get("Authorization")))
        if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
            return self.send(request, 401, b'{"error": "Invalid credentials"}', {"X-Error-Code": "RepoNotFound"}, body)
        if self.gated:
            return self.send(request, 403, b'{"error": "Access restricted"}', {"X-Error-Code": "GatedRepo"}, body)
        for name, files in self.models.items():
            if path.startswith(f"/api/models/{name}/revision/"):
                siblings = [self.sibling(file, data) for file, data in files.items()]
                listing = {
                    "id": name,
                    "modelId": name,
                    "sha": COMMIT,
                    "siblings": siblings,
                    "tags": [],
                    "private": False,
                }
                return self.send(request, 200, json.dumps(listing).encode(), {"Content-Type": "application/json"}, body)
            if path.startswith(f"/{name}/resolve/{COMMIT}/"):
                data = files.get(path.removeprefix(f"/{name}/resolve/{COMMIT}/"))
                if data is not None:
                    return self.file(request, data, body)
        self.send(request, 404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"}, body)

    def sibling(self, name: str, data: bytes) -> dict[str, Any]:
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        found: dict[str, Any] = {"rfilename": name, "size": len(data)}
        if self.git_checksums:
            found["blobId"] = blob
        if name.endswith(".safetensors"):
            digest = self.listed_sha256.get(name, hashlib.sha256(data).hexdigest())
            found["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 130}
        return found

    def file(self, request: BaseHTTPRequestHandler, data: bytes, body: bool) -> None:
        start = 0
        status, headers = 200, {"ETag": '"x"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if request.headers.get("Range") and self.ranges:
            start = int(request.headers["Range"].removeprefix("bytes=").split("-")[0])
            if start >= len(data):
                return self.send(request, 416, b"", {"Content-Range": f"bytes */{len(data)}"}, body)
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if self.cut_after is not None and len(data) > self.cut_after:
            # Announces everything, sends a part and hangs up.
            request.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(data) - start)}).items():
                request.send_header(key, value)
            request.end_headers()
            request.wfile.write(data[start : start + self.cut_after])
            request.close_connection = True
            return
        self.send(request, status, data[start:], headers, body)

    @staticmethod
    def send(request: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        request.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(data))}).items():
            request.send_header(key, value)
        request.end_headers()
        if body:
            request.wfile.write(data)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    try:
        yield hub
    finally:
        hub.stop()


@pytest.fixture
def files(golden: Path) -> dict[str, bytes]:
    """The author's folder, with what nobody needs beside it."""
    folder = golden / "mini_msb_infinite"
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in (folder / "polarquant").rglob("*.safetensors")
    }
    found["upscalers/ltx-2.3-spatial-upscaler-x2-1.1.safetensors"] = found[sorted(found)[0]]
    return found | {
        "README.md": b"# card",
        "setup.py": b"print('no')",
        "video.mp4": b"0" * 1000,
        ".gitattributes": b"x",
    }


def on_disk(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found.pop("hlwq.sha256.json", None)
    return found


def needed(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name.endswith(".safetensors")}


def test_only_what_is_needed_and_intact(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.models[HLWQ] = files
    told: list[tuple[int, int]] = []
    result = download(to=tmp_path / "x", progress=lambda done, total, text: told.append((done, total)))
    assert result.repository == HLWQ and result.revision == COMMIT
    assert on_disk(tmp_path / "x") == needed(files)
    total = sum(map(len, needed(files).values()))
    assert told[-1] == (total, total) and [done for done, _ in told] == sorted(done for done, _ in told)
    # Once more: nothing is fetched, all is compared.
    before = len(hub.requests)
    again = download(to=tmp_path / "x")
    assert again.fetched == [] and len(again.present) == len(needed(files))
    assert not any("/resolve/" in path for path, *_ in hub.requests[before:])


def test_the_record_serves_verify(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.models[HLWQ] = {name: data for name, data in files.items() if "upscalers" not in name}
    download(to=tmp_path / "x")
    result = verify(tmp_path / "x")
    assert result.ok and result.checksums == 4, result.problems


def test_the_former_name_is_tried_too(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.models[POLARQUANT] = files
    assert download(to=tmp_path / "x").repository == POLARQUANT


def test_broken_connection_is_taken_up_again(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    hub.models[HLWQ] = files
    hub.cut_after = 15_000
    download(to=tmp_path / "x")
    assert on_disk(tmp_path / "x") == needed(files)
    assert any(ranges for _, ranges, _ in hub.requests)


class Stop(Exception):
    pass


def test_stopped_and_resumed_where_it_was(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)
    data = os.urandom(1_000_000)
    hub.models["we/model"] = {"big.safetensors": data}

    def stop(done: int, total: int, text: str) -> None:
        if done > 400_000:
            raise Stop

    with pytest.raises(Stop):
        download("we/model", tmp_path / "x", progress=stop)
    assert not (tmp_path / "x" / "big.safetensors").exists()
    (partial,) = (path for path in (tmp_path / "x").iterdir())
    there = partial.stat().st_size
    assert 400_000 <= there < 1_000_000
    download("we/model", tmp_path / "x")
    assert hub.requests[-1][1] == f"bytes={there}-"
    assert on_disk(tmp_path / "x") == {"big.safetensors": data}


@pytest.mark.parametrize("good", [True, False])
def test_stopped_between_the_last_byte_and_its_place(hub: Hub, tmp_path: Path, good: bool) -> None:
    """The partial file is as long as it shall be: it is compared, and fetched anew only if it is not right."""
    data = os.urandom(300_000)
    hub.models["we/model"] = {"big.safetensors": data}

    def stop(done: int, total: int, text: str) -> None:
        if text.startswith("checking"):
            raise Stop

    with pytest.raises(Stop):
        download("we/model", tmp_path / "x", progress=stop)
    (partial,) = (tmp_path / "x").iterdir()
    assert partial.read_bytes() == data
    if not good:
        partial.write_bytes(bytes(len(data)))
        with pytest.raises(DownloadError, match="corrupted"):
            download("we/model", tmp_path / "x")
    before = len(hub.requests)
    download("we/model", tmp_path / "x")
    assert on_disk(tmp_path / "x") == {"big.safetensors": data}
    assert good != any("/resolve/" in path for path, *_ in hub.requests[before:])


def test_a_server_without_ranges(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some mirrors send the whole file again: it is not appended to what is there."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)
    data = os.urandom(1_000_000)
    hub.models["we/model"] = {"big.safetensors": data}

    def stop(done: int, total: int, text: str) -> None:
        if done > 400_000:
            raise Stop

    with pytest.raises(Stop):
        download("we/model", tmp_path / "x", progress=stop)
    hub.ranges = False
    download("we/model", tmp_path / "x")
    assert on_disk(tmp_path / "x") == {"big.safetensors": data}


def test_gated(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.models[HLWQ] = files
    hub.gated = True
    with pytest.raises(DownloadError, match="(?s)refuses access.*HTTP 403.*terms"):
        download(to=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_corrupted_on_the_way(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.models[HLWQ] = files
    name = sorted(needed(files))[0]
    hub.listed_sha256[name] = hashlib.sha256(b"what the author uploaded").hexdigest()
    with pytest.raises(DownloadError, match="corrupted"):
        download(to=tmp_path / "x")
    assert name not in on_disk(tmp_path / "x")
    hub.listed_sha256.clear()
    download(to=tmp_path / "x")
    assert on_disk(tmp_path / "x") == needed(files)


def test_what_lies_there_damaged_is_fetched_again(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.models[HLWQ] = files
    download(to=tmp_path / "x")
    pointer, flipped = sorted(needed(files))[:2]
    (tmp_path / "x" / pointer).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    data = bytearray(files[flipped])
    data[-1] ^= 1
    (tmp_path / "x" / flipped).write_bytes(data)
    assert sorted(download(to=tmp_path / "x").fetched) == [pointer, flipped]
    assert on_disk(tmp_path / "x") == needed(files)


def test_disk_too_small(hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.models[HLWQ] = files
    monkeypatch.setattr("hlwq_core.tools.download.shutil.disk_usage", lambda path: type("U", (), {"free": 10})())
    with pytest.raises(DownloadError, match="not enough room"):
        download(to=tmp_path / "x")
    assert on_disk(tmp_path / "x") == {}
    assert not any("/resolve/" in path for path, *_ in hub.requests)


def test_disk_full_in_between(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.models[HLWQ] = files
    with monkeypatch.context() as patch:

        def full(handle: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(os, "fsync", full)
        with pytest.raises(DownloadError, match="disk is full"):
            download(to=tmp_path / "x")
    assert not any(name.endswith(".safetensors") for name in on_disk(tmp_path / "x"))
    download(to=tmp_path / "x")
    assert on_disk(tmp_path / "x") == needed(files)


def test_token(hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.models[HLWQ] = files
    hub.token = "hf_secret"
    with pytest.raises(DownloadError, match="(?s)HF_TOKEN") as refused:
        download(HLWQ, tmp_path / "x", token="hf_wrong")
    assert "hf_wrong" not in str(refused.value)
    download(HLWQ, tmp_path / "x", token="hf_secret")
    assert on_disk(tmp_path / "x") == needed(files)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert download(HLWQ, tmp_path / "y").fetched


def test_no_such_repository(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="no such repository") as refused:
        download(to=tmp_path / "x")
    assert HLWQ in str(refused.value) and POLARQUANT in str(refused.value)
    hub.models["we/empty"] = {"README.md": b"x"}
    with pytest.raises(DownloadError, match="no safetensors"):
        download("we/empty", tmp_path / "x")
    with pytest.raises(InputError, match="no repository name"):
        download("../etc", tmp_path / "x")


def test_hub_gone(hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.models[HLWQ] = files
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)

    def progress(done: int, total: int, text: str) -> None:
        if done > total // 3 and not hub.gone:
            hub.gone = True
            hub.server.shutdown()
            hub.server.server_close()

    with pytest.raises(DownloadError, match=r"(?s)cannot be reached.*try again"):
        download(to=tmp_path / "x", progress=progress)
    with pytest.raises(DownloadError, match="cannot be reached"):
        download(to=tmp_path / "y")


def test_offline(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
        download(to=tmp_path / "x")
    assert hub.requests == []


@pytest.mark.parametrize(
    "name",
    [
        "../evil.safetensors",
        "a/../../evil.safetensors",
        "/etc/evil.safetensors",
        "C:/evil.safetensors",
        "a\\..\\evil.safetensors",
        "a//evil.safetensors",
        ".ssh/evil.safetensors",
        "a/b/c/d/e/f/evil.safetensors",
        "evil\n.safetensors",
        "con.safetensors",
        "a/NUL/evil.safetensors",
        "aux .safetensors",
        "é" * 128 + ".safetensors",
        "a /evil.safetensors",
    ],
)
def test_names_cannot_leave_the_folder(hub: Hub, tmp_path: Path, name: str) -> None:
    with pytest.raises(DownloadError, match="not safe"):
        check_name(name, "we/model")
    hub.models["we/model"] = {"good.safetensors": b"x", name: b"evil"}
    with pytest.raises(DownloadError, match="not safe"):
        download("we/model", tmp_path / "in" / "x")
    assert on_disk(tmp_path) == {}


@pytest.mark.parametrize("other", ["A.safetensors", "Sub/a.safetensors"])
def test_two_names_that_are_one_to_some_systems(hub: Hub, tmp_path: Path, other: str) -> None:
    hub.models["we/model"] = {other.lower(): b"x", other: b"y"}
    with pytest.raises(DownloadError, match="two files that are one"):
        download("we/model", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_link_cannot_lead_out(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "x" / "codes").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    hub.models["we/model"] = {"codes/a.safetensors": b"x" * 10}
    with pytest.raises(DownloadError, match="leads out"):
        download("we/model", tmp_path / "x")
    assert on_disk(tmp_path / "elsewhere") == {}


def test_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    (tmp_path / "models").mkdir()
    assert default_folder(HLWQ) == tmp_path / "models" / "hlwq" / "LTX-2.3-22B-HLWQ-Q5"
    monkeypatch.delenv("COMFYUI_PATH")
    if REPO.parent.name != "custom_nodes":
        with pytest.raises(InputError, match="--to"):
            default_folder(HLWQ)


def test_command_in_its_own_process(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    """The whole way: environment variables as users set them, exit codes, JSON."""
    hub.models[HLWQ] = files
    command = [sys.executable, "-m", "hlwq_core", "download", "--to", str(tmp_path / "x"), "--json"]
    base = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_TOKEN")}

    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=REPO, env=base | environment, capture_output=True, text=True, timeout=120, check=False
        )

    offline = run(HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert offline.returncode == 2 and "offline" in offline.stderr
    done = run(HF_ENDPOINT=hub.url)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["repository"] == HLWQ
    assert on_disk(tmp_path / "x") == needed(files)


def test_two_into_one_folder(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    """The panel's and the command's: both would append to one file. The second is refused, the first ends well."""
    hub.models[HLWQ] = files
    refused = []

    def second(done: int, total: int, text: str) -> None:
        if not refused:
            with pytest.raises(InputError, match="another run is writing") as error:
                download(HLWQ, tmp_path / "x")
            refused.append(str(error.value))

    result = download(HLWQ, tmp_path / "x", progress=second)
    assert refused and on_disk(tmp_path / "x") == {name: files[name] for name in result.fetched}


def test_two_processes_into_one_folder(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.models[HLWQ] = files
    command = [sys.executable, "-m", "hlwq_core", "download", HLWQ, "--to", str(tmp_path / "x")]
    environment = {**os.environ, "PYTHONPATH": str(REPO), "HF_HUB_OFFLINE": "0"}
    ended: list[subprocess.CompletedProcess[str]] = []

    def second(done: int, total: int, text: str) -> None:
        if not ended:
            ended.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=False))

    result = download(HLWQ, tmp_path / "x", progress=second)
    assert ended[0].returncode == 2 and "another run is writing" in ended[0].stderr
    assert on_disk(tmp_path / "x") == {name: files[name] for name in result.fetched}


def test_parts_of_an_earlier_revision_go(hub: Hub, tmp_path: Path) -> None:
    """And nothing else that is called like one."""
    first, second = os.urandom(300_000), os.urandom(300_000)
    hub.models["we/model"] = {"big.safetensors": first}

    def stop(done: int, total: int, text: str) -> None:
        raise Stop

    with pytest.raises(Stop):
        download("we/model", tmp_path / "x", progress=stop)
    (part,) = (tmp_path / "x").iterdir()
    (tmp_path / "x" / ".mine.partial").write_bytes(b"mine")
    hub.models["we/model"] = {"big.safetensors": second}
    download("we/model", tmp_path / "x")
    assert not part.exists()
    assert on_disk(tmp_path / "x") == {"big.safetensors": second, ".mine.partial": b"mine"}


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("name", ["big.safetensors", "config.json"])
def test_another_file_of_the_same_size_is_noticed(hub: Hub, tmp_path: Path, name: str, checksums: bool) -> None:
    """At the hub and in the folder: small files have git's checksum; where the hub tells none they are fetched anew."""
    hub.git_checksums = checksums
    hub.models["we/model"] = {"weights.safetensors": b"w" * 100, name: b"a" * 1000}
    download("we/model", tmp_path / "x")
    hub.models["we/model"][name] = b"b" * 1000
    assert name in download("we/model", tmp_path / "x").fetched
    assert (tmp_path / "x" / name).read_bytes() == b"b" * 1000
    (tmp_path / "x" / name).write_bytes(b"c" * 1000)
    assert download("we/model", tmp_path / "x").fetched == [name]
    assert (tmp_path / "x" / name).read_bytes() == b"b" * 1000
    again = download("we/model", tmp_path / "x").fetched
    assert again == ([] if checksums or name.endswith(".safetensors") else [name])


def test_a_small_file_that_came_damaged(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.models["we/model"] = {"weights.safetensors": b"w" * 100, "config.json": b"{}"}
    monkeypatch.setattr(hub, "file", lambda request, data, body: hub.send(request, 200, b"x" * len(data), {}, body))
    with pytest.raises(DownloadError, match="corrupted"):
        download("we/model", tmp_path / "x")
    assert not list((tmp_path / "x").glob("*.json")) and not list((tmp_path / "x").glob("*.safetensors"))


def test_files_that_the_new_revision_has_not(hub: Hub, tmp_path: Path) -> None:
    """They are the user's to remove, but they are named: a loader would take them for a part of the model."""
    hub.models["we/model"] = {"a.safetensors": b"a" * 100, "b.safetensors": b"b" * 100}
    assert download("we/model", tmp_path / "x").outdated == []
    hub.models["we/model"] = {"a.safetensors": b"c" * 100}
    assert download("we/model", tmp_path / "x").outdated == ["b.safetensors"]
    assert (tmp_path / "x" / "b.safetensors").exists()


@needs_fork
def test_killed_at_any_rename_no_revisions_are_mixed(hub: Hub, tmp_path: Path) -> None:
    """The files of a newer revision take their places together, in the killed run or in the next."""

    def revision(letter: bytes, names: str) -> dict[str, bytes]:
        return {f"{name}.safetensors": letter * 2000 + name.encode() for name in names}

    for number in range(1, 30):
        folder = tmp_path / f"try{number}"
        hub.models["we/model"] = old = revision(b"o", "abc")
        download("we/model", folder)
        hub.models["we/model"] = new = revision(b"n", "abcd")
        killed = killed_at(number, "hlwq_core.tools.download:download", "we/model", folder, endpoint=hub.url)
        found = {name: data for name, data in on_disk(folder).items() if name.endswith(".safetensors")}
        if not (folder / ".hlwq.replacing.json").is_file():
            assert found in (old, new), f"change {number}"
            noted = {name: item["sha256"] for name, item in read_record(folder).items()}
            assert noted == {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}, f"change {number}"
        download("we/model", folder)
        assert on_disk(folder) == new, f"change {number}"
        assert not [path.name for path in folder.iterdir() if path.name.startswith(".")], f"change {number}"
        if not killed:
            break
    assert 5 < number < 29


@pytest.mark.parametrize("damaged", [True, False])
def test_a_disk_that_became_read_only(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    """The error is an HLWQError, and what is wrong with a file comes before what fails behind it."""
    hub.models[HLWQ] = files
    if damaged:
        hub.listed_sha256 = dict.fromkeys(files, "0" * 64)

    def refuse(source: Any, *args: Any, **kwargs: Any) -> None:
        raise OSError(30, "Read-only file system", os.fspath(source))

    for name in ("replace", "unlink", "remove"):
        monkeypatch.setattr(os, name, refuse)
    with pytest.raises(DownloadError if damaged else InputError, match="corrupted" if damaged else "cannot be written"):
        download(HLWQ, tmp_path / "x")
