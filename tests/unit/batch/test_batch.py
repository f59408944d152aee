"""`batch` as it is called, on ComfyUIs that are started for it and on one that runs. They are small fakes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hlwq_core import cli
from hlwq_core.batch import driver
from hlwq_core.client.server import LocalServer

from .conftest import Place

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the fake's processes are looked for in /proc"),
]


def told(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out)


def test_each_job_has_one_output_and_a_line(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = place.jobs("a cat", "# a remark", "a dog", "", "a cat")
    assert place.call(jobs, "--json") == 0
    said = told(capsys)
    assert (said["made"], said["failed"], said["left"], said["error"]) == (3, 0, 0, None)
    assert len(place.made()) == 3 and len(place.ran()) == 3
    manifest = [json.loads(line) for line in (place.output / "manifest.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in manifest] == ["a cat", "a dog", "a cat"]
    for line, result in zip(manifest, said["results"], strict=True):
        (file,) = line["files"]
        content = (place.output / file["name"]).read_bytes()
        assert file["sha256"] == hashlib.sha256(content).hexdigest() and file["size"] == len(content)
        assert f"seed {line['seed']}," in content.decode() and line["prompt"] in content.decode()
        assert len(line["workflow"]) == 64 and line["seconds"] > 0 and line["worker"] in ("cpu0", "cpu1")
        assert result["files"][0]["path"] == str(place.output / file["name"])
    # The same prompt twice is two jobs, with two seeds.
    assert manifest[0]["seed"] != manifest[2]["seed"]
    assert place.none_alive() and not list((place.folder / "temp").glob("hlwq-comfyui-*"))

    # Called again there is nothing to do, and nothing is started.
    before, pids = place.made(), place.pids.read_text()
    assert place.call(jobs, "--json") == 0
    assert told(capsys)["made"] == 3 and place.made() == before and place.pids.read_text() == pids
    # What was added is made, what was taken away by the user is made again.
    gone = sorted(before)[0]
    (place.output / gone).unlink()
    assert place.call(place.jobs("a cat", "a dog", "a bird", "a cat")) == 0
    assert len(place.made()) == 4 and place.made()[gone] == before[gone] and len(place.ran()) == 5


def test_failures_are_tried_again_and_listed(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = place.jobs("one", "two FAIL", "three ONCE", "four REFUSE", "five NOTHING")
    assert place.call(jobs, "--json", "--tries", "3") == 1
    said = told(capsys)
    assert (said["made"], said["failed"], said["left"]) == (2, 3, 0)
    by = {result["prompt"]: result for result in said["results"]}
    assert by["two FAIL"]["tries"] == 3 and "no two FAIL" in by["two FAIL"]["error"]
    assert by["three ONCE"]["tries"] == 2 and by["three ONCE"]["error"] is None
    assert by["four REFUSE"]["tries"] == 1 and "not this" in by["four REFUSE"]["error"]
    assert "without a file" in by["five NOTHING"]["error"]
    assert sum("FAIL" in line for line in place.ran()) == 3

    ran = len(place.ran())
    assert place.call(jobs) == 1 and len(place.ran()) == ran, "their tries are used up"
    assert "two FAIL" in capsys.readouterr().out
    assert place.call(jobs, "--retry-failed", "--tries", "1") == 1 and len(place.ran()) == ran + 2


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_dead_worker_costs_no_try(
    place: Place, workers: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a job at which every worker dies is listed in the end."""
    monkeypatch.setattr(driver, "_PAUSE", 0.01)
    jobs = place.jobs("one", "two DIE", "three", "four")
    assert place.call(jobs, "--json", "--tries", "1", "--depth", "1", "--workers", workers) == 1
    said = told(capsys)
    by = {result["prompt"]: result for result in said["results"]}
    assert said["made"] == 3 and f"{driver.DEATHS} workers died at this job" in by["two DIE"]["error"]
    assert len(place.made()) == 3
    assert sum("DIE" in line for line in place.ran()) == driver.DEATHS


def test_no_worker_is_left_and_what_was_made_is_listed(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    main = place.comfyui / "main.py"
    main.write_text(main.read_text().replace("if __name__", "sys.exit('no torch here')\nif __name__"))
    assert place.call(place.jobs("one", "two"), "--json") == 2
    out, err = capsys.readouterr()
    assert "no torch here" in err and "no torch here" in json.loads(out)["error"]
    assert json.loads(out)["left"] == 2 and place.none_alive()


def test_all_are_refused_for_one_reason(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten are enough to know it; when it is mended, they are jobs as any other."""
    main = place.comfyui / "main.py"
    text = main.read_text()
    main.write_text(text.replace('"REFUSE" in', '"p" in'))
    jobs = place.jobs(*(f"p {n}" for n in range(40)))
    assert place.call(jobs, "--json") == 2
    said = told(capsys)
    assert "not this" in said["error"] and said["left"] == 40
    main.write_text(text)
    assert place.call(jobs) == 0 and len(place.made()) == 40


def test_every_worker_has_its_own(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Base folder, port, log, temporary folder, database; models, nodes and inputs are those of the base."""
    (place.comfyui / "models").mkdir()
    (place.comfyui / "models" / "m").write_text("model")
    (place.comfyui / "input" / "example.png").write_text("picture")
    jobs = place.jobs(*(f"p {n}" for n in range(6)))
    assert place.call(jobs, "--comfyui-log", str(place.folder / "log.txt")) == 0
    seen = "picture " + hashlib.sha256(b"picture").hexdigest()
    assert all(seen in text for text in place.made().values())
    started = [(place.folder / f"log_{n}.txt").read_text().split("fake ComfyUI ")[1] for n in (1, 2)]
    words = [json.loads(line[: line.index("]") + 1]) for line in started]
    for option in ("--base-directory", "--port", "--temp-directory", "--output-directory"):
        first, second = (w[w.index(option) + 1] for w in words)
        assert first != second, option
    assert all("sqlite:///:memory:" in w and "--cpu" in w for w in words)
    assert sorted(p.name for p in (place.comfyui / "input").iterdir()) == ["example.png"]
    assert (place.comfyui / "models" / "m").read_text() == "model", "linked, and not removed with the link"


def test_one_a_card(place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from hlwq_core.client import server

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7,GPU-abc")
    monkeypatch.setattr(server, "_ask", lambda python, code: "cuda H100\n" * 3)
    jobs = place.jobs(*(f"p {n}" for n in range(9)))
    log = str(place.folder / "log.txt")
    assert place.call(jobs, "--gpus", "all", "--comfyui-log", log) == 0
    logs = [(place.folder / f"log_{n}.txt").read_text() for n in (1, 2, 3)]
    assert [text.split()[-1] for text in logs] == ["4", "7", "GPU-abc"] and "--cpu" not in logs[0]
    assert place.call(place.jobs("x"), "--gpus", "0,5") == 2
    assert "not cards of this machine" in capsys.readouterr().err
    monkeypatch.setattr(server, "_ask", lambda python, code: "" if "get_device_name" in code else "False")
    assert place.call(place.jobs("x"), "--gpus", "all") == 2
    assert "--workers 2" in capsys.readouterr().err


def test_two_calls_at_once(place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "2")
    jobs = place.jobs("one", "two", "three")
    pid = place.fork(place.arguments(jobs))
    while not place.ran():
        time.sleep(0.02)
    assert place.call(jobs) == 2
    assert "another call works on this batch" in capsys.readouterr().err
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(place.made()) == 3 and len(place.ran()) == 3


def test_stopped_and_called_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "0.3")
    jobs = place.jobs(*(f"p {n}" for n in range(8)))
    pid = place.fork(place.arguments(jobs, "--json"))
    while len(place.made()) < 2:
        time.sleep(0.02)
    os.kill(pid, signal.SIGINT)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    log = (place.folder / "log").read_text()
    said = json.loads(log[log.index("{") : log.rindex("}") + 1])
    assert said["made"] >= 2 and said["made"] + said["left"] == 8 and place.none_alive()
    assert place.call(jobs) == 0 and len(place.made()) == 8


def test_a_server_that_runs_goes_on_while_the_driver_is_dead(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was queued there is not queued again."""
    monkeypatch.setenv("FAKE_SECONDS", "0.5")
    jobs = place.jobs("one", "two", "three", "four")
    with LocalServer(place.comfyui, extra=["--cpu"], timeout=60) as server:
        words = place.arguments(jobs, "--server", server.url)
        pid = place.fork(words)
        while not place.ran():
            time.sleep(0.02)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert cli.main([*words, "--json"]) == 0
    assert told(capsys)["made"] == 4
    assert len(place.made()) == 4 and len(place.ran()) == 4


def test_a_token_is_in_no_file_and_in_no_line(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = place.jobs("one", "two FAIL")
    secret, file = "tok-verysecret", place.folder / "headers"
    file.write_text(f"Authorization: Bearer {secret}\n")
    with LocalServer(place.comfyui, extra=["--cpu"], timeout=60) as server:
        url = f"{server.url}/?key={secret}"
        words = place.arguments(jobs, "--server", url, "--header", f"@{file}")
        assert cli.main(words) == 1
        assert cli.main([*words, "--json"]) == 1
        file_of_server = server.log.read_text()
    said = capsys.readouterr()
    everything = said.out + said.err + file_of_server
    everything += "".join(p.read_text("utf-8", "replace") for p in place.output.rglob("*") if p.is_file())
    assert secret not in everything and "film of one" in everything
    words = place.arguments(jobs, "--server", f"http://127.0.0.1:9/?key={secret}", "--header", f"@{file}")
    assert cli.main([*words, "--json", "--retry-failed"]) == 2
    assert secret not in (said := capsys.readouterr()).out + said.err


def test_ray_is_asked_for_and_not_there(place: Place, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError('No module named ray', name='ray')\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from hlwq_core import cli; sys.exit(cli.main(sys.argv[1:]))"
    words = place.arguments(place.jobs("x"), "--ray", "auto")
    repository = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 2 and 'pip install "ray[default]"' in done.stderr and "Traceback" not in done.stderr


def test_a_folder_of_pictures(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = place.folder / "pictures"
    pictures.mkdir()
    for name in ("b.PNG", "a.jpg", "notes.md"):
        (pictures / name).write_text(name)
    (pictures / "a.txt").write_text("waves\n")
    assert place.call(pictures, "--prompt", "wind", "--set", "Width.value=96") == 0
    made = place.made()
    assert sorted(made) == ["a.mp4", "b.mp4"]
    assert "film of waves" in made["a.mp4"] and "film of wind" in made["b.mp4"] and "width 96" in made["a.mp4"]
    assert f"picture {hashlib.sha256(b'b.PNG').hexdigest()}" in made["b.mp4"]


def test_a_server_that_talks_nonsense_is_given_up_and_no_job_blamed(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And its escape sequences do not reach the terminal."""
    monkeypatch.setattr(driver, "_PAUSE", 0.01)
    main = place.comfyui / "main.py"
    text = main.read_text()
    found = 'return web.json_response({request.match_info["id"]: found} if found else {})'
    assert found in text
    main.write_text(text.replace(found, "return web.Response(text='<html>')"))
    jobs = place.jobs("one", "two", "three FAIL")
    with LocalServer(place.comfyui, extra=["--cpu"], timeout=60) as server:
        words = place.arguments(jobs, "--server", server.url, "--json")
        assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert "is not a ComfyUI" in err and json.loads(out)["left"] == 3 and not json.loads(out)["results"][0]["tries"]

    main.write_text(
        text.replace('"no {text}"', '"\\x1b]0;title\\x07 {text}"').replace('f"no {text}"', '"\\x1b]0;x\\x07"')
    )
    assert place.call(jobs) == 1
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err and "x1b" in out
