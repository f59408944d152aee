"""From options to a workflow, and the command against a fake ComfyUI. The real one: tests/http/test_generate.py."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from hlwq_core import cli
from hlwq_core.client import graph
from hlwq_core.client.client import Client
from hlwq_core.client.generate import (
    Request,
    Target,
    as_json,
    build,
    check_size,
    describe,
    frames_of,
    queue,
    resample,
    run_all,
    workflow_path,
)
from hlwq_core.client.node_progress import NodeProgress
from hlwq_core.client.server import LocalServer, find_comfyui
from hlwq_core.errors import InputError, MediaError, ServerError
from hlwq_core.media import probe

from .fake_comfy import INFO, WORKFLOW, FakeComfy, finish

REPO = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(60)


def play(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def value(nodes: graph.Nodes, title: str, name: str = "value") -> Any:
    node_id = graph.find(nodes, title)
    assert node_id is not None
    return nodes[node_id]["inputs"][name]


# ---- which workflow, and what is set in it ----


@pytest.mark.parametrize(
    ("request_", "stem"),
    [
        (Request(), "text_to_video"),
        (Request(image=Path("a.png")), "image_to_video"),
        (Request(audio=Path("a.wav")), "audio_to_video"),
        (Request(upscale="spatial"), "two_stage"),
        (Request(upscale="temporal"), "temporal_upscale"),
        (Request(image=Path("a.png"), upscale="spatial"), "image_to_video_two_stage"),
        (Request(upscale="spatial", workflow=Path("mine.json")), "mine"),
    ],
)
def test_the_workflow_follows_from_the_request(request_: Request, stem: str) -> None:
    assert workflow_path(request_).stem.removeprefix("hlwq_ltx23_") == stem


def test_what_no_workflow_does_is_refused() -> None:
    with pytest.raises(InputError, match="--image and --upscale temporal together"):
        workflow_path(Request(image=Path("a.png"), upscale="temporal"))


def test_every_option_reaches_its_input() -> None:
    nodes = build(
        Request(
            prompt="a cat",
            negative="a dog",
            checkpoint="mine",
            text_encoder="gemma",
            width=128,
            height=64,
            frames=17,
            fps=12.0,
            seed=7,
            upscale="temporal",
        )
    )
    assert value(nodes, "Prompt", "text") == "a cat" and value(nodes, "Negative prompt", "text") == "a dog"
    assert value(nodes, "Load Checkpoint", "checkpoint") == "mine"
    assert value(nodes, "Load Text Encoder", "checkpoint") == "mine"
    assert value(nodes, "Load Text Encoder", "text_encoder") == "gemma"
    assert [value(nodes, t) for t in ("Width", "Height", "Length", "Frame rate")] == [128, 64, 17, 12.0]
    assert value(nodes, "Seed", "noise_seed") == value(nodes, "Seed, stage 2", "noise_seed") == 7


def sound_file(path: Path, samples: int) -> Path:
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(bytes(2 * samples))
    return path


def test_a_short_sound_decides_the_length(tmp_path: Path) -> None:
    nodes = build(Request(audio=sound_file(tmp_path / "a.wav", 16_000), fps=24.0))
    assert value(nodes, "Length") == 17  # 8 n + 1 in 24
    long = build(Request(audio=sound_file(tmp_path / "b.wav", 160_000), fps=24.0))
    assert value(long, "Length") == value(graph.load(workflow_path(Request(audio=Path("x")))), "Length")


def test_a_sound_whose_file_does_not_say_how_long_it_is(tmp_path: Path) -> None:
    """As browsers record it: the samples are counted."""
    path = tmp_path / "a.webm"
    with path.open("wb") as file:
        with av.open(SimpleNamespace(write=file.write), "w", format="webm", options={"live": "1"}) as out:
            stream = out.add_stream("libopus", rate=48_000, layout="mono")
            for start in range(0, 48_000, 960):
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), dtype=np.float32), format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 48_000, start
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    info = probe(path)
    assert info.audio is not None and info.audio.duration == pytest.approx(1.0, abs=0.03)
    assert value(build(Request(audio=path, fps=24.0)), "Length") == 17


@pytest.mark.parametrize("options", [{}, {"frames": 25}, {"seconds": 1.0}])
def test_a_sound_of_0_samples_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="0 samples") as caught:
        build(Request(audio=sound_file(tmp_path / "a.wav", 0), **options))
    assert caught.value.file == str(tmp_path / "a.wav") and caught.value.fix


def test_a_sound_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("no sound")
    with pytest.raises(MediaError, match="a.wav") as caught:
        build(Request(audio=tmp_path / "a.wav", frames=25))
    assert caught.value.fix


@pytest.mark.parametrize("path", sorted(graph.SHIPPED.glob("*.json")), ids=lambda p: p.stem)
def test_every_shipped_workflow_has_the_titles_and_valid_sizes(path: Path) -> None:
    nodes = build(Request(prompt="x", negative="y", checkpoint="c", text_encoder="t", seed=1, steps=4, workflow=path))
    step = 64 if "two_stage" in path.stem else 32
    check_size(value(nodes, "Width"), value(nodes, "Height"), value(nodes, "Length"), step)


def test_the_schedule_keeps_its_ends_and_its_own_number_of_steps() -> None:
    official = value(graph.load(workflow_path(Request())), "Sigmas", "sigmas")
    numbers = [float(s) for s in official.split(",")]
    assert [float(s) for s in resample(official, 8).split(",")] == pytest.approx(numbers)
    for steps in (1, 3, 20):
        other = [float(s) for s in resample(official, steps).split(",")]
        assert len(other) == steps + 1 and other[0] == 1.0 and other[-1] == 0.0
        assert other == sorted(other, reverse=True)
    with pytest.raises(InputError):
        resample(official, 0)


@pytest.mark.parametrize(
    ("size", "fix"),
    [
        ((700, 512, 121, 32), "--width 704"),
        ((768, 530, 121, 32), "--height 544"),
        ((736, 512, 121, 64), "--width 704"),
        ((10, 512, 121, 32), "--width 32"),
        ((768, 512, 120, 32), "--frames 121"),
        ((768, 512, 0, 32), "--frames 1"),
    ],
)
def test_sizes_that_the_model_does_not_take_come_with_the_nearest(size: tuple[int, ...], fix: str) -> None:
    with pytest.raises(InputError) as caught:
        check_size(*size)
    assert fix in str(caught.value)


def test_seconds_become_valid_frames() -> None:
    assert frames_of(5, 24) == 121 and frames_of(0.1, 24) == 9
    assert all(frames_of(s / 7, 25) % 8 == 1 for s in range(1, 100))
    assert value(build(Request(seconds=2, fps=24.0)), "Length") == 49
    with pytest.raises(InputError):
        build(Request(seconds=2, frames=49))
    with pytest.raises(InputError):
        frames_of(float("nan"), 24)


def test_loras_come_behind_the_distilled_one_and_before_everything_else() -> None:
    before = graph.load(workflow_path(Request(upscale="spatial")))
    distilled = graph.find(before, "Distilled LoRA")
    users = [(i, n) for i, node in before.items() for n, v in node["inputs"].items() if v == [distilled, 0]]
    assert len(users) == 2  # one guider a stage

    nodes = build(Request(upscale="spatial", loras=[("a.safetensors", 0.5), ("b.safetensors", 1.0)]))
    first, second = graph.find(nodes, "LoRA 1"), graph.find(nodes, "LoRA 2")
    assert nodes[first]["inputs"] == {"model": [distilled, 0], "lora_name": "a.safetensors", "strength_model": 0.5}
    assert nodes[second]["inputs"]["model"] == [first, 0]
    assert all(nodes[i]["inputs"][n] == [second, 0] for i, n in users)


# ---- --set ----


def nodes_to_set() -> graph.Nodes:
    return {
        "1": {"class_type": "Loader", "inputs": {"file": "a", "deep": True}, "_meta": {"title": "Load v1.1"}},
        "2": {"class_type": "Sampler", "inputs": {"model": ["1", 0], "seed": 3, "cfg": 1.5, "values.a": 2}},
        "3": {"class_type": "Sampler", "inputs": {"model": ["1", 0], "seed": 3}, "_meta": {"title": "Twice"}},
        "4": {"class_type": "Sampler", "inputs": {"model": ["1", 0], "seed": 3}, "_meta": {"title": "Twice"}},
    }


@pytest.mark.parametrize(
    ("text", "where", "expected"),
    [
        ("Load v1.1.file=b=c.safetensors", ("1", "file"), "b=c.safetensors"),
        ("1.file=123", ("1", "file"), "123"),
        ("Load v1.1.deep=false", ("1", "deep"), False),
        ("Sampler.seed=18446744073709551615", ("2", "seed"), 2**64 - 1),
        ("Sampler.cfg=2", ("2", "cfg"), 2),
        ("Sampler.values.a=5", ("2", "values.a"), 5),
        ("Sampler.model=[\"9\", 0]", ("2", "model"), ["9", 0]),
        ("3.seed=4", ("3", "seed"), 4),
    ],
)  # fmt: skip
def test_set_reads_the_value_as_what_stands_there(text: str, where: tuple[str, str], expected: object) -> None:
    nodes = nodes_to_set()
    graph.assign(nodes, text)
    found = nodes[where[0]]["inputs"][where[1]]
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Nobody.seed=1", "names no node"),
        ("Sampler.seed", "equals sign"),
        ("Sampler.nope=1", "no input 'nope'"),
        ("Twice.seed=1", "one of the ids 3, 4"),
        ("Sampler.seed=many", "a whole number"),
        ("Sampler.seed=1.5", "a whole number"),
        ("Load v1.1.deep=1", "true or false"),
    ],
)
def test_set_refuses_what_it_cannot_mean(text: str, says: str) -> None:
    nodes = nodes_to_set()
    with pytest.raises(InputError, match=says):
        graph.assign(nodes, text)
    assert nodes == nodes_to_set()


def test_set_takes_an_input_that_only_the_server_knows() -> None:
    nodes = nodes_to_set()
    with pytest.raises(InputError):
        graph.assign(nodes, "Load v1.1.order=msb")
    graph.assign(nodes, "Load v1.1.order=msb", {"Loader": {"input": {"optional": {"order": [["msb"], {}]}}}})
    assert nodes["1"]["inputs"]["order"] == "msb"


# ---- names of files ----


@pytest.mark.parametrize(
    ("wanted", "there", "expected"),
    [
        ("x.safetensors", ["sub/x.safetensors", "y.safetensors"], ["sub/x.safetensors"]),
        ("sub/x.safetensors", ["sub\\x.safetensors"], ["sub\\x.safetensors"]),
        ("gemma_3_12B_it.safetensors", ["t5.safetensors", "gemma-3-12b.safetensors"], ["gemma-3-12b.safetensors"]),
        ("gemma_3.safetensors", ["gemma.safetensors", "gemma-HLWQ"], ["gemma.safetensors"]),
        ("LTX-2.3-22B-HLWQ-Q5", ["my-folder"], ["my-folder"]),
        ("LTX-2.3-22B-HLWQ-Q5", ["LTX-a", "LTX-b"], ["LTX-a", "LTX-b"]),
        ("anything", [], []),
    ],
)
def test_a_default_that_is_not_there_is_replaced_if_one_can_be_meant(
    wanted: str, there: list[str], expected: list[str]
) -> None:
    assert graph.match(wanted, there) == expected


def test_no_other_lora_is_taken_and_what_was_asked_for_is_not_guessed() -> None:
    official = "ltx_2.3_22b_distilled_1.1_lora.safetensors"
    assert graph.match(official, ["style.safetensors"], lora=True) == []
    assert graph.match("ltx-dolly.safetensors", ["ltx-style.safetensors"], lora=True) == []
    tiny = "ltx-2.3-tiny-distilled-lora.safetensors"
    assert graph.match(official, [tiny, "style.safetensors"], lora=True) == [tiny]
    assert graph.match("ltx-b", ["ltx-a"], asked=True) == []
    assert graph.match("tiny", ["LTX-2.3-tiny-HLWQ-Q5", "LTX-2.3-22B"], asked=True) == ["LTX-2.3-tiny-HLWQ-Q5"]


def test_resolve_says_what_it_took_and_lists_the_choices_otherwise() -> None:
    said: list[str] = []
    nodes: graph.Nodes = {"1": {"class_type": "Loader", "inputs": {"file": "A.safetensors"}}}
    graph.resolve(nodes, INFO, said.append)
    assert nodes["1"]["inputs"]["file"] == "a.safetensors" and "there is no A.safetensors" in said[0]

    nodes["1"]["inputs"]["file"] = "z.bin"
    with pytest.raises(InputError) as caught:
        graph.resolve(nodes, INFO)
    assert all(part in str(caught.value) for part in ("'z.bin'", "a.safetensors", "b.safetensors", "--set"))

    empty = {"Loader": {"input": {"required": {"file": ["COMBO", {"options": []}]}}}}
    with pytest.raises(InputError, match="the folder is empty"):
        graph.resolve(nodes, empty)


def test_files_that_are_no_workflow_in_api_form(tmp_path: Path) -> None:
    for text, says in (
        ('{"nodes": [], "links": []}', "for the canvas"),
        ("{", "not JSON"),
        ('{"1": {"inputs": {}}}', "not a workflow in API form"),
        ("[]", "not a workflow in API form"),
    ):
        path = tmp_path / "w.json"
        path.write_text(text)
        with pytest.raises(InputError, match=says):
            graph.load(path)
    with pytest.raises(InputError, match="cannot be read"):
        graph.load(tmp_path / "none.json")


# ---- where results go ----


def test_targets_are_checked_before_any_work(tmp_path: Path) -> None:
    for bad in (tmp_path / "none" / "a.mp4", tmp_path / "a.webm", f"{tmp_path}/none/"):
        with pytest.raises(InputError):
            Target.of(bad, 1, ".mp4")
    assert Target.of(tmp_path / "a", 1, ".mp4").place("x_1_.mp4", 1, False) == tmp_path / "a.mp4"
    batch = Target.of(tmp_path / "a.mp4", 12, ".mp4")
    assert [batch.place("x.mp4", n, False).name for n in (1, 12)] == ["a_01.mp4", "a_12.mp4"]


def test_a_file_of_comfyuis_name_replaces_nothing(tmp_path: Path) -> None:
    target = Target.of(tmp_path, 1, ".mp4")
    (tmp_path / "x.mp4").touch()
    assert target.place("x.mp4", 1, False) == tmp_path / "x_1.mp4"
    for outside in ("../../y.mp4", "/etc/y.mp4", "..\\y.mp4"):
        assert target.place(outside, 1, False) == tmp_path / "y.mp4"


# ---- running on a fake ComfyUI ----


def silent(line: str) -> None:
    pass


@contextlib.contextmanager
def plain_files() -> Iterator[None]:
    """The fake's film is no film: keep the probe away from it."""
    from hlwq_core.client import generate

    original, generate._probe = generate._probe, lambda path: None
    try:
        yield
    finally:
        generate._probe = original


def test_a_queue_of_runs_moves_the_seeds_and_numbers_the_files(tmp_path: Path) -> None:
    workflow = tmp_path / "w.json"
    workflow.write_text(json.dumps(WORKFLOW))

    async def go() -> list[dict[str, Any]]:
        async with FakeComfy() as fake:
            with plain_files():
                await queue(fake.url, workflow, 3, ["Sample it.seed=10"], tmp_path / "out.mp4", say=silent, quiet=True)
            return list(fake.prompts.values())

    prompts = play(go())
    assert [p["2"]["inputs"]["seed"] for p in prompts] == [10, 11, 12]
    assert sorted(p.name for p in tmp_path.glob("*.mp4")) == ["out_1.mp4", "out_2.mp4", "out_3.mp4"]


def test_one_failure_in_a_batch_does_not_stop_the_rest(tmp_path: Path) -> None:
    done = []

    async def run(fake: FakeComfy, prompt_id: str) -> None:
        done.append(prompt_id)
        if len(done) != 2:
            return await finish(fake, prompt_id)
        await fake.wait_for_socket()
        data = {"node_id": "2", "node_type": "Sampler", "exception_message": "boom", "exception_type": "ValueError"}
        await fake.end(prompt_id, [["execution_error", data]])

    async def go() -> Any:
        async with FakeComfy(run) as fake, Client(fake.url) as client:
            with plain_files():
                jobs = [(str(n), graph.reseed(WORKFLOW, n)) for n in range(3)]
                return await run_all(client, jobs, Target.of(tmp_path, 3, None), quiet=True, say=silent)

    results = play(go())
    assert [r.error is None for r in results] == [True, False, True]
    assert "boom" in describe(results[1]) and as_json(results[1])["error"]
    assert len(list(tmp_path.iterdir())) == 2


def test_cancelling_takes_everything_back(tmp_path: Path) -> None:
    async def go() -> None:
        running = asyncio.Event()

        async def run(fake: FakeComfy, prompt_id: str) -> None:
            await fake.wait_for_socket()
            running.set()
            await asyncio.wait_for(fake.interruption.wait(), 5)

        async with FakeComfy(run) as fake, Client(fake.url) as client:
            jobs = [(str(n), graph.reseed(WORKFLOW, n)) for n in range(3)]
            work = asyncio.ensure_future(run_all(client, jobs, Target.of(tmp_path, 3, None), quiet=True, say=silent))
            await running.wait()
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            assert len(fake.interrupted) == 1 and len(fake.deleted) == 3 and not fake.pending

    play(go())
    assert not list(tmp_path.iterdir())


def test_a_workflow_without_a_file_is_no_success(tmp_path: Path) -> None:
    async def run(fake: FakeComfy, prompt_id: str) -> None:
        await fake.wait_for_socket()
        await fake.end(prompt_id, **{"2": {"text": ["words"]}})

    async def go() -> None:
        async with FakeComfy(run) as fake, Client(fake.url) as client:
            await run_all(client, [("a", WORKFLOW)], Target.of(tmp_path, 1, None), quiet=True, say=silent)

    with pytest.raises(ServerError, match="without a file"):
        play(go())


# ---- progress ----


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_progress_shows_every_node(stream: io.StringIO) -> None:
    with NodeProgress(WORKFLOW, stream) as watch:
        watch("executing", {"node": "1"})
        watch("progress_state", {"nodes": {"1": {"state": "finished", "value": 1, "max": 1}}})
        for value_ in (1, 4, 8):
            watch("progress_state", {"nodes": {"2": {"state": "running", "value": value_, "max": 8}}})
        watch("progress_state", {"nodes": {"2": {"state": "finished", "value": 8, "max": 8}}})
    text = stream.getvalue()
    assert "Load it" in text and "Sample it" in text and "[ 2/2]" in text
    assert set(watch.seconds) == {"1", "2"}
    if stream.isatty():
        assert "8/8" in text


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo terminals here")
def test_progress_shows_on_a_terminal_without_a_size() -> None:
    """So it is in containers and under `script`: 0 columns and 0 lines, where tqdm shows nothing."""
    ours, theirs = os.openpty()
    try:
        with os.fdopen(theirs, "w") as stream:
            with NodeProgress(WORKFLOW, stream) as watch:
                watch("progress_state", {"nodes": {"2": {"state": "finished", "value": 8, "max": 8}}})
            assert b"Sample it" in os.read(ours, 65536)
    finally:
        os.close(ours)


# ---- a server of our own ----

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
@pytest.mark.parametrize(("flag", "says"), [("--die", "the reason is in the last line"), ("--hang", "within 2 s")])
def test_a_server_that_does_not_come_up_shows_its_log(fake_folder: Path, tmp_path: Path, flag: str, says: str) -> None:
    with pytest.raises(ServerError, match=says) as caught, LocalServer(fake_folder, extra=["--cpu", flag], timeout=2):
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


def test_no_comfyui_says_how_to_give_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    with pytest.raises(InputError, match="not a ComfyUI"):
        find_comfyui(tmp_path)
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(InputError, match="not a ComfyUI"):
        find_comfyui()


# ---- the command ----


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "there is no prompt"),
        (["--prompt", "x", "--image", "none.png"], "no such file"),
        (["--prompt", "x", "--frames", "9", "--seconds", "1"], "twice"),
        (["--prompt", "x", "--workflow", "none.json"], "cannot be read"),
        (["--prompt", "x", "--server", "--comfyui", "y"], "--comfyui"),
        (["--prompt", "x", "--width", "700", "--server", "http://127.0.0.1:9"], "--width 704"),
        (["--prompt", "x", "--server", "http://127.0.0.1:9"], "no answer from ComfyUI"),
        (["--prompt", "x", "--server", "http://127.0.0.1:9", "--output", "/nowhere/x.mp4"], "does not exist"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_with_a_way_out(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_options_of_comfyui_stand_at_the_end() -> None:
    for command in (["generate"], ["queue", "w.json", "-n", "2"], ["queue", "-n", "2", "w.json"]):
        args = cli.parser().parse_args(
            [*command, "--output", "x", "--comfyui-args", "--lowvram", "--reserve-vram", "2"]
        )
        assert args.comfyui_args == ["--lowvram", "--reserve-vram", "2"] and args.output == "x"
    assert cli.parser().parse_args(["generate"]).comfyui_args == []
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["generate", "a prompt without its option"])


def test_lora_strengths() -> None:
    from hlwq_core.commands.generate import _lora

    assert _lora("a.safetensors:0.5") == ("a.safetensors", 0.5)
    assert _lora("C:style") == ("C:style", 1.0)
    assert _lora("b") == ("b", 1.0)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP")
def test_nohup_is_respected() -> None:
    from hlwq_core.commands.generate import _stoppable

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _stoppable():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with _stoppable():
            assert callable(signal.getsignal(signal.SIGHUP))
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
