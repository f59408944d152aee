"""HLWQ Calibrate: transparent between loader and sampler, and what it gathers makes a better checkpoint."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

ORIGINAL = "checkpoints/ltx23_tiny_bf16.safetensors"


@pytest.fixture
def folder(comfy_base: Path):
    path = comfy_base / "models" / "hlwq" / "calibration"
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def original(comfy_base: Path):
    path = comfy_base / "models" / "checkpoints" / "ltx23_tiny_bf16.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    there = path.exists()
    if not there:
        path.symlink_to(comfy_base / "models" / "reference" / "ltx23_tiny_bf16.safetensors")
    yield path
    if not there:
        path.unlink()


def watched(model: Any, name: str = "mine", moments: str = "blocks") -> Any:
    from comfyui_hlwq.nodes.calibrate import HLWQCalibrate

    assert HLWQCalibrate.validate_inputs(name) is True
    return HLWQCalibrate.execute(model, name, moments, 4.0).args[0]


def opened(folder: Path, name: str = "mine"):
    from comfyui_hlwq.hlwq_core.codec.calibration import CalibrationFile

    return CalibrationFile(folder / f"{name}.safetensors")


def test_the_samples_are_the_same_and_the_file_is_there(load, sample, folder: Path) -> None:
    model = load()[0]
    plain = sample(model, steps=8)
    calibrated = watched(model)
    assert not folder.exists(), "nothing is written before something was sampled"
    found = sample(calibrated, steps=8)
    assert all(torch.equal(a, b) for a, b in zip(plain, found))
    file = opened(folder)
    assert file.samples == 1 and not file.loras and file.identity
    name = "transformer_blocks.0.attn1.to_q.weight"
    inputs = file.inputs(name)
    assert inputs is not None and inputs.count > 0 and inputs.moments is not None and inputs.held is not None
    assert file.layers["transformer_blocks.0.attn1.to_k.weight"]["of"] in file.layers[name]["of"]
    blocks = [n for n in file.layers if n.startswith("transformer_blocks.")]
    assert len(blocks) >= 2 * 28
    assert all(torch.equal(a, b) for a, b in zip(plain, sample(model, steps=8))), "and afterwards"
    assert not any(m._forward_pre_hooks for m in model.model.modules())


def test_it_goes_on_after_an_interruption(load, sample, folder: Path) -> None:
    model = load()[0]
    calibrated = watched(model)
    sample(calibrated)
    first = opened(folder).layers

    import comfy.model_management as management

    calls = 0

    def interrupted(*unused: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise management.InterruptProcessingException

    handle = model.model.diffusion_model.transformer_blocks[1].attn1.to_q.register_forward_pre_hook(interrupted)
    with pytest.raises(management.InterruptProcessingException):
        sample(calibrated)
    handle.remove()
    cut = opened(folder)
    name = "transformer_blocks.0.attn1.to_q.weight"
    assert cut.samples == 1 and cut.layers[name]["count"] > first[name]["count"], "the steps until then count"
    sample(watched(load()[0]))  # another day
    again = opened(folder)
    assert again.samples == 2 and again.layers[name]["count"] > cut.layers[name]["count"]


def test_a_full_disk_is_told_and_does_not_hide_what_ended_the_run(
    load, sample, folder: Path, monkeypatch, caplog
) -> None:
    import comfy.model_management as management
    from comfyui_hlwq.hlwq_core.errors import DiskFullError
    from comfyui_hlwq.nodes import calibrating

    def full(self: Any, path: Path) -> None:
        raise DiskFullError("there is no room", file=path, expected="room", found="none", fix="make room")

    save = calibrating.Calibration.save
    monkeypatch.setattr(calibrating.Calibration, "save", full)
    model = load()[0]
    calibrated = watched(model)
    with pytest.raises(DiskFullError, match="make room"):
        sample(calibrated)

    def interrupted(*unused: Any) -> None:
        raise management.InterruptProcessingException

    handle = model.model.diffusion_model.transformer_blocks[1].attn1.to_q.register_forward_pre_hook(interrupted)
    with pytest.raises(management.InterruptProcessingException):
        sample(calibrated)
    handle.remove()
    assert "make room" in caplog.text
    monkeypatch.setattr(calibrating.Calibration, "save", save)
    sample(calibrated)
    assert opened(folder).samples == 2, "what could not be written is written with the next run"


def test_loras_are_noted_and_not_mixed(load, sample, folder: Path) -> None:
    from comfyui_hlwq.hlwq_core.errors import InputError

    from .test_lora import lora_on, with_lora

    model = load()[0]
    loud = with_lora(model, lora_on(model)[0])
    sample(watched(loud, "loud"))
    assert opened(folder, "loud").loras
    with pytest.raises(InputError, match="another way"):
        sample(watched(model, "loud"))
    late = with_lora(watched(model, "late"), lora_on(model)[0])
    sample(late)
    assert opened(folder, "late").loras, "a LoRA behind the node counts as well"


def test_fast_mode_is_off_meanwhile(load, sample, folder: Path, pack) -> None:
    from comfyui_hlwq.nodes.running import as_chosen

    model = load()[0]
    exact = sample(model)
    seen: set[Any] = set()
    as_chosen.make_fast(model.model.diffusion_model, "int8")
    try:
        layer = model.model.diffusion_model.transformer_blocks[0].attn1.to_q
        handle = layer.register_forward_pre_hook(lambda module, inputs: seen.add(module.eight_bit))
        found = sample(watched(model))
        handle.remove()
        assert seen == {None} and layer.eight_bit == "int8", "off while it gathers, and on again"
        assert all(torch.equal(a, b) for a, b in zip(exact, found))
    finally:
        for module in model.model.modules():
            if hasattr(module, "eight_bit"):
                module.eight_bit = module.shared = None


def test_recorded_blocks_do_not_know_it(load) -> None:
    from comfyui_hlwq.hlwq_core.running import cuda_graph
    from comfyui_hlwq.nodes.running import recorded_blocks

    options = watched(load()[0]).model_options["transformer_options"]
    with pytest.raises(cuda_graph.Unrecordable, match="hlwq_calibrates"):
        recorded_blocks._recordable(options)


def test_compiled_code_is_off_meanwhile(load, sample, folder: Path) -> None:
    model = load()[0]
    inner = model.model.diffusion_model
    compiled: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(len(graph.graph.nodes))
        return graph.forward

    layer = inner.transformer_blocks[0].attn1.to_q
    own = layer.forward
    layer.forward = torch.compile(own, backend=backend)
    try:
        sample(watched(model))
    finally:
        layer.forward = own
        del layer.forward
    assert not compiled and opened(folder).samples == 1


def test_from_the_node_to_a_better_checkpoint(
    load, sample, distance, folder: Path, original: Path, comfy_base: Path
) -> None:
    from comfyui_hlwq.nodes import locations
    from comfyui_hlwq.nodes.load_checkpoint import load_checkpoint
    from comfyui_hlwq.nodes.quantize_model import HLWQQuantize

    calibrated = watched(load()[0])
    for seed in range(6):
        sample(calibrated, seed=seed, steps=8)
    assert "mine.safetensors" in locations.calibrations()
    made = []
    try:
        reports, models = {}, {}
        for name, calibration in (("without", "none"), ("with", "mine.safetensors")):
            made.append(comfy_base / "models" / "hlwq" / name)
            assert HLWQQuantize.validate_inputs(ORIGINAL, name, "published", calibration) is True
            reports[name] = HLWQQuantize.execute(ORIGINAL, name, "4", "search", "ltx23", "published", calibration).args[
                0
            ]
            models[name] = load_checkpoint(locations.checkpoint(name))[0]
        assert "6 runs, LoRAs off" in reports["with"]
        coded = re.search(r"(\d+) layers coded for their inputs, (\d+) biases corrected", reports["with"])
        assert coded is not None and int(coded[1]) + reports["with"].count("kept searched") > 0 and int(coded[2]) > 0
        assert sample(models["with"])[0].shape == sample(models["without"])[0].shape
        assert "calibration" not in reports["without"]
    finally:
        for path in made:
            shutil.rmtree(path, ignore_errors=True)


def test_what_cannot_be_is_said_before(folder: Path, original: Path) -> None:
    from comfyui_hlwq.nodes.calibrate import HLWQCalibrate
    from comfyui_hlwq.nodes.quantize_model import HLWQQuantize

    for name in ("../x", "", "a/b", "x."):
        assert "no name for a calibration" in str(HLWQCalibrate.validate_inputs(name))
    assert "asks for the calibration nowhere" in str(
        HLWQQuantize.validate_inputs(ORIGINAL, "x", "published", "nowhere")
    )
