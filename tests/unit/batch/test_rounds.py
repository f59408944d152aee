"""kill -9 of ComfyUIs, of Ray's actors and of the driver at arbitrary moments: called again, each job has exactly one output, and
no process is left. HLWQ_ROUNDS=10 asks for so many rounds of each.

The ComfyUIs are small fakes here; tests/http/test_batch.py has real ones.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Place

REPO = Path(__file__).resolve().parents[3]
ROUNDS = int(os.environ.get("HLWQ_ROUNDS", "0"))
PROMPTS = 12
pytestmark = [
    pytest.mark.timeout(300 + 60 * ROUNDS),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kill -9, and /proc"),
]


def status(pid: int, patience: float) -> int | None:
    """The exit code of a child; None while it runs."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        done, code = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(code)
        time.sleep(0.01)
    return None


def check(place: Place, jobs: int = PROMPTS) -> None:
    """Exactly one output a job, each whole, and the manifest has them."""
    made = place.made()
    assert len(made) == jobs
    lines = [json.loads(line) for line in (place.output / "manifest.jsonl").read_text().splitlines()]
    assert sorted(file["name"] for line in lines for file in line["files"]) == sorted(made)
    for line in lines:
        assert f"film of {line['prompt']}, seed {line['seed']}," in made[line["files"][0]["name"]]
        assert line["tries"] == 1, "a dead worker costs no try"
    journal = (place.output / ".hlwq-batch" / "journal.jsonl").read_text()
    assert journal.count('"event": "made"') == jobs
    assert not list((place.output / ".hlwq-batch" / "parts").iterdir())


@pytest.mark.parametrize("seed", range(max(ROUNDS, 3)))
def test_kills_at_any_moment(place: Place, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    monkeypatch.setenv("FAKE_SECONDS", "0.15")
    words = place.arguments(place.jobs(*(f"prompt {n}" for n in range(PROMPTS))))
    kills = 0
    while True:
        before = len(place.ran())
        pid = place.fork(words)
        code = None
        while code is None and kills < 8:
            code = status(pid, chance.uniform(0.0, 1.2))
            kills += code is None
            if code is None and chance.random() < 0.5:
                os.kill(pid, signal.SIGKILL)
                code = status(pid, 10)
                assert place.none_alive(), "a ComfyUI outlived the driver"
            # A call whose ComfyUIs all die before one has answered gives up at once, as it should.
            elif code is None and (servers := place.alive()) and (len(servers) > 1 or len(place.ran()) > before):
                os.kill(chance.choice(servers), signal.SIGKILL)
        code = status(pid, 100) if code is None else code
        assert code in (0, -9), (place.folder / "log").read_text()[-3000:]
        if code == 0:
            break
    check(place)
    assert place.none_alive() and not list((place.folder / "temp").glob("hlwq-comfyui-*"))


# ---- Ray ----


class Cluster:
    """A Ray cluster of two CPUs on this machine, in a process group of its own."""

    def __init__(self, ray: Path, comfyui_variables: dict[str, str]):
        self.temp = Path(tempfile.mkdtemp(prefix="hlwq-ray-", dir="/tmp"))  # sockets have short paths
        self.variables = {
            **os.environ,
            **comfyui_variables,
            "PYTHONPATH": f"{ray}{os.pathsep}{REPO}",
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # on a busy machine they would not get on
            "RAY_TMPDIR": str(self.temp),
        }
        from hlwq_core.client.server import free_port

        self.address = f"127.0.0.1:{free_port()}"
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"]
        command += ["--include-dashboard=false", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
        command += [
            f"--port={self.address.split(':')[1]}",
            f"--temp-dir={self.temp}",
            "--object-store-memory=100000000",
        ]
        with (self.temp / "start.log").open("wb") as log:
            self.process = subprocess.Popen(
                command, env=self.variables, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        end = time.monotonic() + 90
        while "Ray runtime started" not in (text := (self.temp / "start.log").read_text()):
            assert self.process.poll() is None and time.monotonic() < end, text
            time.sleep(0.1)

    def actors(self) -> list[int]:
        """Process numbers of our actors in this cluster."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    title, variables = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
                except OSError:
                    continue
                if title.startswith(b"ray::Actor") and str(self.temp).encode() in variables:
                    found.append(int(entry.name))
        return found

    def stop(self) -> None:
        group = os.getpgid(self.process.pid)
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(10)
        shutil.rmtree(self.temp, ignore_errors=True)


@pytest.fixture
def cluster(place: Place, ray: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("FAKE_SECONDS", "0.3")
    cluster = Cluster(ray, {})
    try:
        yield cluster
    finally:
        cluster.stop()


def test_kills_under_ray(place: Place, cluster: Cluster) -> None:
    for seed in range(max(ROUNDS, 1)):
        shutil.rmtree(place.output, ignore_errors=True)
        chance = random.Random(seed)
        jobs = place.jobs(*(f"prompt {seed} {n}" for n in range(PROMPTS)))
        words = place.arguments(jobs, "--ray", cluster.address, "--workers", "2")
        for kill in ("a driver", "the rest", None):
            with (place.folder / "log").open("ab") as log:
                driver = subprocess.Popen(
                    [sys.executable, "-m", "hlwq_core", *words],
                    env=cluster.variables,
                    cwd=REPO,
                    stdout=log,
                    stderr=log,
                )
            try:
                if kill == "a driver":
                    wait(place, 2, driver)
                    time.sleep(chance.uniform(0, 1))
                    driver.kill()
                    driver.wait()
                    assert place.none_alive(60), "a ComfyUI outlived the driver"
                    continue
                for whom in chance.sample(["comfyui", "actor"], 2):
                    wait(place, len(place.made()) + 1, driver)
                    time.sleep(chance.uniform(0, 0.5))
                    found = place.alive() if whom == "comfyui" else cluster.actors()
                    if found and driver.poll() is None:
                        os.kill(chance.choice(found), signal.SIGKILL)
                assert driver.wait(150) == 0, (place.folder / "log").read_text()[-3000:]
                break
            finally:
                driver.kill()
                driver.wait()
        check(place)
        assert place.none_alive(60), "an orphan"  # Ray takes its time on a busy machine
        end = time.monotonic() + 60
        while (left := [*(place.folder / "temp").glob("hlwq-comfyui-*")]) and time.monotonic() < end:
            time.sleep(0.1)
        assert not left, "a ComfyUI's folder"


def wait(place: Place, count: int, driver: subprocess.Popen[bytes], patience: float = 90) -> None:
    """Until so many outputs are made, or the driver has ended."""
    end = time.monotonic() + patience
    while len(place.made()) < count and driver.poll() is None:
        assert time.monotonic() < end, (place.folder / "log").read_text()[-3000:]
        time.sleep(0.02)
