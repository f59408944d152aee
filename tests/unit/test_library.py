"""hlwq_core from outside of the package: every example of docs/library.md runs as it stands."""

from __future__ import annotations

import asyncio
import io
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
import torch
from safetensors.torch import save_file

import hlwq_core
from hlwq_core.client import graph
from hlwq_core.client.generate import Request, workflow_path

from .client.fake_comfy import FakeComfy

REPO = Path(__file__).resolve().parents[2]
PAGE = (REPO / "docs" / "library.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^## (\w+)\n.*?^```python\n(.*?)^```$", PAGE, re.M | re.S)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples name: a model, its checkpoint, and one that lacks a chunk."""
    folder = tmp_path_factory.mktemp("elsewhere")
    torch.manual_seed(0)
    tensors = {f"blocks.{n}.{kind}.weight": torch.randn(256, 256) for n in range(4) for kind in ("attn", "mlp")}
    save_file(tensors | {"head.bias": torch.zeros(8)}, folder / "my-model.safetensors")
    hlwq_core.quantize(folder / "my-model.safetensors", folder / "my-model-HLWQ-Q5", chunk_bytes=100_000)
    shutil.copytree(folder / "my-model-HLWQ-Q5", folder / "incomplete-HLWQ-Q5")
    sorted((folder / "incomplete-HLWQ-Q5" / "polarquant" / "codes").iterdir())[-1].unlink()
    return folder


def film() -> bytes:
    """One grey frame as MP4."""
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width = stream.height = 32
        for packet in (*stream.encode(av.VideoFrame(32, 32, "yuv420p")), *stream.encode()):
            container.mux(packet)
    return data.getvalue()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A small ComfyUI that takes any of the shipped workflows."""
    addresses: list[str] = []
    ready, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        async with FakeComfy() as fake:
            nodes = graph.load(workflow_path(Request()))
            fake.files["a.mp4"] = film()
            fake.info |= {name: {"input": {"required": {}}} for name in graph.classes(nodes)}
            addresses.append(fake.url)
            ready.set()
            while not stop.is_set():
                await asyncio.sleep(0.05)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(30)
    yield addresses[0]
    stop.set()
    thread.join()


def run(code: str, place: Path) -> str:
    command = [sys.executable, "-W", "error::DeprecationWarning:hlwq_core", "-c", code]
    variables = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=place, env=variables, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_has_an_example_of_each() -> None:
    assert [name for name, _ in EXAMPLES] == ["Open", "Decode", "Inspect", "Verify", "Quantize", "Repair", "Generate"]


@pytest.mark.parametrize(("name", "code"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_the_example_runs(place: Path, url: str, name: str, code: str) -> None:
    said = run(code.replace("http://127.0.0.1:8188", url), place)
    expected = {
        "Open": "blocks.0.attn.weight (256, 256) 5 infinite msb\n",
        "Decode": "",
        "Inspect": "unknown True [] ",
        "Verify": "True 0.99",
        "Quantize": "plain 8 4.125 0.99",
        "Repair": "['blocks.3.mlp.weight'",
        "Generate": "rain.mp4",
    }[name]
    assert expected in said or (name == "Repair" and "repair_00_codes" in said), said


def test_what_is_public_is_there_and_documented() -> None:
    for name in hlwq_core.__all__:
        value = getattr(hlwq_core, name)
        assert name == "__version__" or value.__doc__, name
        assert f"hlwq_core.{name}" in PAGE or name in PAGE or name == "__version__", f"{name} is not in docs/library.md"
    assert set(hlwq_core.__all__) <= set(dir(hlwq_core))
    with pytest.raises(AttributeError):
        hlwq_core.nothing  # noqa: B018


def test_tools_are_imported_when_they_are_asked_for(place: Path) -> None:
    code = "import sys, hlwq_core; print([m for m in sys.modules if 'hlwq_core.tools' in m or 'hlwq_core.client' in m])"
    assert run(code, place).strip() == "[]"


def test_names_that_were_documented_before(place: Path) -> None:
    run(
        "from hlwq_core.generate import Request, generate, queue\n"
        "from hlwq_core.client import Client\n"
        "from hlwq_core.server import LocalServer\n"
        "import hlwq_core.generate, hlwq_core.client.client\n"
        "assert hlwq_core.client.Client is hlwq_core.client.client.Client\n",
        place,
    )
