"""The tools in a real ComfyUI over HTTP: queued alone, with ComfyUI's own checks of inputs, progress and Cancel."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .workflows import ask, run

CHECKPOINT = "LTX-2.3-tiny-HLWQ-Q5"
ORIGINAL = "checkpoints/tools_original.safetensors"


@pytest.fixture(scope="module")
def models(server: Any) -> Iterator[Path]:
    folder = Path(server.base) / "models"
    original = folder / ORIGINAL
    original.parent.mkdir(exist_ok=True)
    original.symlink_to(folder / "reference" / "ltx23_tiny_bf16.safetensors")
    yield folder
    original.unlink()
    for path in (folder / "hlwq").glob("tools-*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def text(server: Any, kind: str, **inputs: Any) -> str:
    outputs = run(server, {"1": {"class_type": kind, "inputs": inputs}})
    return "\n".join(outputs["1"]["text"])


def test_quantize_inspect_verify(server: Any, models: Path) -> None:
    said = text(
        server,
        "HLWQQuantize",
        source=ORIGINAL,
        name="tools-5",
        bits="5",
        norms="search",
        rules="ltx23",
        layout="published",
    )
    assert "layers quantized" in said and (models / "hlwq" / "tools-5" / "polarquant").is_dir()
    outputs = run(server, {"1": {"class_type": "HLWQInspect", "inputs": {"checkpoint": "tools-5"}}})
    assert "complete" in outputs["1"]["text"][0] and outputs["1"]["images"][0]["filename"].endswith(".png")
    assert "sound" in text(server, "HLWQVerify", checkpoint="tools-5", original=ORIGINAL)
    # Files change: what was queued before is done anew, not taken from the cache.
    sorted((models / "hlwq" / "tools-5" / "polarquant" / "codes").iterdir())[0].unlink()
    with pytest.raises(AssertionError, match="no quantized tensors"):
        text(server, "HLWQRepair", checkpoint="tools-5", original=ORIGINAL)


def test_errors_reach_the_user_before_anything_runs(server: Any, models: Path) -> None:
    inputs = {"source": ORIGINAL, "name": "../x", "bits": "5", "norms": "search", "rules": "ltx23", "layout": "single"}
    with pytest.raises(AssertionError, match="no name for a checkpoint"):
        text(server, "HLWQQuantize", **inputs)
    with pytest.raises(AssertionError, match="offline"):
        text(server, "HLWQDownload", repository="caiovicentino1/LTX-2.3-22B-HLWQ-Q5")


def test_cancel_stops_a_running_node(server: Any, models: Path) -> None:
    """A model large enough that the quantization is still running when Cancel comes."""
    import torch
    from safetensors.torch import save_file

    big = models / "checkpoints" / "tools_big.safetensors"
    save_file({f"blocks.{i}.weight": torch.randn(1024, 1024) for i in range(60)}, big)
    inputs = {
        "source": f"checkpoints/{big.name}",
        "name": "tools-big",
        "bits": "8",
        "norms": "search",
        "rules": "plain",
    }
    try:
        prompt = {"1": {"class_type": "HLWQQuantize", "inputs": inputs | {"layout": "published"}}}
        number = ask(server.url, "/prompt", {"prompt": prompt})["prompt_id"]
        end = time.monotonic() + 60
        while not (begun := list((models / "hlwq").glob(".tools-big*/polarquant/codes/.*"))) and time.monotonic() < end:
            time.sleep(0.05)
        assert begun, "nothing was written within a minute"
        interrupt(server)
        entry, end = None, time.monotonic() + 60
        while time.monotonic() < end and not entry:
            entry = ask(server.url, f"/history/{number}").get(number)
            time.sleep(0.1)
        assert entry and "execution_interrupted" in [m[0] for m in entry["status"]["messages"]], entry
        assert not (models / "hlwq" / "tools-big").exists()
    finally:
        big.unlink()
        for path in (models / "hlwq").glob(".tools-big*"):
            shutil.rmtree(path)


def interrupt(server: Any) -> None:
    """POST /interrupt; the answer is empty."""
    try:
        ask(server.url, "/interrupt", {})
    except json.JSONDecodeError:
        pass
