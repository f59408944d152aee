"""A checkpoint with the transformer alone is a normal thing: with or without prefix, as a file or a folder."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

PREFIX = "model.diffusion_model."


@pytest.fixture(scope="module", params=["prefixed", "bare"])
def alone(request: pytest.FixtureRequest, pack: ModuleType, tiny: Path, comfy_base: Path) -> str:
    """Label of a packed transformer in models/diffusion_models, made by the quantizer of a dense one."""
    from comfyui_hlwq.hlwq_core.tools.quantize import quantize

    source = tiny / "models" / "reference" / "ltx23_tiny_bf16.safetensors"
    with safe_open(source, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys() if name.startswith(PREFIX)}
        metadata = file.metadata()
    if request.param == "bare":
        tensors = {name.removeprefix(PREFIX): value for name, value in tensors.items()}
    folder = comfy_base / "models" / "diffusion_models"
    folder.mkdir(exist_ok=True)
    dense = comfy_base / f"dense_{request.param}.safetensors"
    save_file(tensors, dense, metadata)
    label = f"ltx23_tiny_{request.param}_hlwq.safetensors"
    quantize(dense, folder / label, layout="single")
    yield label
    (folder / label).unlink()
    dense.unlink()


def prompt(label: str, *outputs: int) -> dict:
    nodes = {"1": {"class_type": "HLWQLoadCheckpoint", "inputs": {"checkpoint": label, "backend": "auto"}}}
    for n in outputs:
        nodes[str(10 + n)] = {"class_type": "Any", "inputs": {"x": ["1", n]}}
    return nodes


def run(label: str, nodes: dict) -> tuple:
    """The node as ComfyUI runs it: on a clone that has the hidden inputs."""
    from comfyui_hlwq.nodes.load_checkpoint import HLWQLoadCheckpoint, io

    clone = HLWQLoadCheckpoint.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.prompt: nodes}})
    with torch.inference_mode():
        return clone.execute(label).args


def test_it_loads_and_samples_as_the_whole_one(load, alone, sample, distance) -> None:
    model, vae, audio_vae, report = load(alone)
    assert vae is None and audio_vae is None
    assert "no video VAE in it: use Load VAE" in report and "no text projection in it" in report
    assert distance(sample(model), sample(load()[0])) < 0.1, "the tiny checkpoint's own codes were quantized again"


def test_the_loader_says_what_to_use_before_it_loads(comfy_base, alone, monkeypatch) -> None:
    from comfyui_hlwq.hlwq_core.errors import IncompleteError
    from comfyui_hlwq.nodes import model_loading

    model, vae, audio_vae, _ = run(alone, prompt(alone, 0))
    for part, name in ((vae, "video VAE"), (audio_vae, "audio VAE")):
        with pytest.raises(IncompleteError, match=f"holds no {name}: use Load VAE"):
            part.decode(torch.zeros(1))
        assert not hasattr(part, "is_dynamic"), "ComfyUI's caches ask every output when memory is short"
        assert getattr(part, "value", None) is None and repr(part) and copy.copy(part) is not part
    monkeypatch.setattr(model_loading, "diffusion_model", lambda *_, **__: pytest.fail("it was loaded"))
    for output, name in ((1, "video VAE"), (2, "audio VAE")):
        with pytest.raises(IncompleteError, match=f"holds no {name}: use Load VAE"):
            run(alone, prompt(alone, 0, output))


def test_load_diffusion_model_stands_for_core_s(comfy_base, alone, sample, distance) -> None:
    from comfyui_hlwq.nodes.load_diffusion_model import HLWQLoadDiffusionModel

    assert HLWQLoadDiffusionModel.validate_inputs(alone) is True
    assert "your folders hold" in HLWQLoadDiffusionModel.validate_inputs("nowhere")
    with torch.inference_mode():
        model, report = HLWQLoadDiffusionModel.execute(alone).args
        whole, _ = HLWQLoadDiffusionModel.execute("LTX-2.3-tiny-HLWQ-Q5").args
    assert "LTXAV" in report
    assert distance(sample(model), sample(whole)) < 0.1


def test_the_tools_say_the_same(comfy_base, alone) -> None:
    from comfyui_hlwq.hlwq_core.tools import inspect, verify
    from comfyui_hlwq.nodes import locations, routes

    path = locations.checkpoint(alone)
    found, checked, panel = inspect.inspect(path), verify.verify(path), routes.report(alone)
    assert found.complete and checked.ok and panel["complete"] and panel["problem"] is None
    parts = {"text projection", "video VAE", "audio VAE"}
    assert set(found.absent) == {part["name"] for part in panel["absent"]} == parts
    assert sum("not in this checkpoint" in note for note in checked.notes) == 3
    assert found.model == panel["model"] == "LTX-2.3 of another size"
    assert panel["other_size"] and panel["family"] == "LTX-2.3"
    json.dumps(found.to_dict())
