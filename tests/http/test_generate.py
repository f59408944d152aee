"""`generate` and `queue` on a real ComfyUI with the tiny model: the files are read back with PyAV."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hlwq_core import cli
from hlwq_core.client import graph
from hlwq_core.media import probe

from .workflows import forget_earlier_runs

REPO = Path(__file__).resolve().parents[2]
# The same words everywhere: the server then encodes them once, which is what takes longest here.
PROMPT = "A cat playing piano in a jazz club"
SMALL = [
    "--prompt",
    PROMPT,
    "--width",
    "64",
    "--height",
    "64",
    "--frames",
    "17",
    "--fps",
    "12",
    "--steps",
    "2",
    "--seed",
    "5",
]
pytestmark = pytest.mark.timeout(240)


def check_film(path: Path, frames: int = 17, rate: float = 12) -> None:
    info = probe(path)
    assert info.video is not None and info.audio is not None
    assert (info.video.width, info.video.height, info.video.frames) == (64, 64, frames)
    assert float(info.video.rate) == pytest.approx(rate)
    assert abs(info.video.duration - info.audio.duration) <= 1 / rate


def test_text_to_video(server: Any, server_backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forget_earlier_runs(server)
    lora = "tiny-distilled-lora:0.2"  # a part of a name is enough
    arguments = ["--server", server.url, "--output", str(tmp_path / "cat"), "--lora", lora]
    assert cli.main(["generate", *SMALL, *arguments]) == 0
    out, err = capsys.readouterr()
    check_film(tmp_path / "cat.mp4")
    assert out.startswith(str(tmp_path / "cat.mp4"))
    assert "17 frames at 12 a second" in out and "48000 Hz" in out
    assert "decoded:" in out and re.search(r"\d+ packed tensors", out) and f"backend {server_backend}" in out
    assert "LTX-2.3-tiny-HLWQ-Q5 (there is no" in err
    for title in ("Load Checkpoint", "Prompt", "LoRA 1", "Sampler", "Save"):
        assert re.search(rf"\[ ?\d+/21\] {title} ", err), title

    # The same again: nothing is loaded or sampled, and the report and the file still come.
    assert cli.main(["generate", *SMALL, *arguments, "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert "packed tensors" in result["report"] and result["node_seconds"].get("Sampler", 0) < 0.05
    (file,) = result["files"]
    assert file["video"]["frames"] == 17 and file["audio"]["rate"] == 48000


def test_image_to_video(server: Any, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tiny / "input" / "start.png"
    arguments = ["--image", str(picture), "--server", server.url, "--output", str(tmp_path), "--json"]
    assert cli.main(["generate", *SMALL, *arguments]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    path = Path(result["files"][0]["path"])
    assert path.parent == tmp_path and path.name.startswith("hlwq_ltx23_image_to_video")
    check_film(path)
    assert (server.base / "input" / "hlwq" / "start.png").read_bytes() == picture.read_bytes()


def test_queue_makes_one_file_a_run(server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workflow = str(graph.SHIPPED / "hlwq_ltx23_text_to_video.json")
    values = ("Width.value=64", "Height.value=64", "Length.value=9", "Sigmas.sigmas=1.0, 0.0", f"Prompt.text={PROMPT}")
    sets = [f"--set={value}" for value in values]
    arguments = ["--server", server.url, "--output", str(tmp_path / "run.mp4"), "--count", "2"]
    assert cli.main(["queue", workflow, *sets, *arguments]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run_1.mp4", "run_2.mp4"]
    for path in tmp_path.iterdir():
        check_film(path, 9, 24)
    assert "run 2" in capsys.readouterr().err


def test_what_the_server_refuses_or_fails_at_is_told(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SMALL, "--server", server.url]
    assert cli.main(["generate", *arguments, "--checkpoint", "none-such"]) == 2
    error = capsys.readouterr().err
    assert "none-such" in error and "LTX-2.3-tiny-HLWQ-Q5" in error and "--checkpoint NAME" in error

    assert cli.main(["generate", *arguments, "--set", "Distilled LoRA.strength_model=1000"]) == 2
    assert "Distilled LoRA (LoraLoaderModelOnly, node 2): strength_model" in capsys.readouterr().err

    # It passes validation and fails in the node.
    assert cli.main(["generate", *arguments, "--set", "Save.filename_prefix=../../out"]) == 2
    error = capsys.readouterr().err
    assert "Save (HLWQDecodeSave, node 19) failed:" in error and "what to do" in error


def test_a_comfyui_of_its_own(
    server: Any, comfyui_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, output = tmp_path / "log.txt", tmp_path / "own.mp4"
    own = ["--comfyui", str(comfyui_path), "--base-directory", str(server.base), "--comfyui-log", str(log)]
    before = sorted((server.base / "output").rglob("*.mp4"))
    code = cli.main(
        ["generate", *SMALL, "--output", str(output), *own, "--comfyui-args", "--cpu", "--disable-api-nodes"]
    )
    assert code == 0, log.read_text()[-3000:]
    check_film(output)
    assert sorted((server.base / "output").rglob("*.mp4")) == before, "the result stands where it was asked for, only"
    address = re.search(r"ComfyUI answers at (\S+)", capsys.readouterr().err)
    assert address
    assert cli.main(["generate", "--prompt", "x", "--server", address[1]]) == 2, "it still runs"
