"""The nodes of a checkpoint's life, in this process: on the tiny model, with progress and Cancel."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from hlwq_core.models.families import repositories

from ..unit.tools.test_download import Hub

CHECKPOINT = "LTX-2.3-tiny-HLWQ-Q5"
NODES = ("HLWQInspect", "HLWQVerify", "HLWQQuantize", "HLWQRepair", "HLWQDownload")


@pytest.fixture(scope="module")
def tools(pack: ModuleType, comfy_base: Path):
    from comfyui_hlwq.nodes import extension

    nodes = {node.GET_SCHEMA().node_id: node for node in map(extension.node_of, extension.NODES)}
    original = comfy_base / "models" / "checkpoints" / "ltx23_tiny_bf16.safetensors"
    original.parent.mkdir(parents=True, exist_ok=True)
    if not original.exists():
        original.symlink_to(comfy_base / "models" / "reference" / "ltx23_tiny_bf16.safetensors")
    yield SimpleNamespace(**{name: nodes[name] for name in NODES})
    original.unlink()


ORIGINAL = "checkpoints/ltx23_tiny_bf16.safetensors"


@pytest.fixture
def made(comfy_base: Path):
    """Folders under models/hlwq that a test makes, gone afterwards."""
    folder = comfy_base / "models" / "hlwq"
    before = {path.name for path in folder.iterdir()}
    yield folder
    for path in folder.iterdir():
        if path.name not in before:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_cancel_in_the_last_moment_is_left_to_the_next_node(pack):
    """What is done has its name by then; the flag that Cancel set is not to be used up."""
    import comfy.model_management as management
    from comfyui_hlwq.hlwq_core.tools.job import Tally
    from comfyui_hlwq.nodes.tool import watched

    tally = Tally(watched(None), 10)
    management.interrupt_current_processing()
    try:
        tally.end()
        assert management.processing_interrupted() and tally.done == 10 and tally.stopped is None
        with pytest.raises(management.InterruptProcessingException):
            tally.tell("something that is not the last word")
    finally:
        management.interrupt_current_processing(False)


def test_the_pack_offers_the_five_nodes(pack: ModuleType, tools) -> None:
    extension = asyncio.run(pack.comfy_entrypoint())
    ids = {node.define_schema().node_id for node in asyncio.run(extension.get_node_list())}
    assert ids >= set(NODES)


@pytest.mark.parametrize("name", NODES)
def test_schemas_are_valid_and_explain_every_input(tools, name: str) -> None:
    schema = getattr(tools, name).GET_SCHEMA()
    schema.validate()
    assert schema.is_output_node and schema.category == "HLWQ/tools" and schema.description
    assert all(item.tooltip for item in (*schema.inputs, *schema.outputs))


def test_inspect_draws_what_is_there(tools) -> None:
    report, image = tools.HLWQInspect.execute(CHECKPOINT).args
    assert "complete" in report and "NOT complete" not in report
    assert image.shape[0] == 1 and image.shape[3] == 3 and image.dtype.is_floating_point
    assert 0 <= float(image.min()) < float(image.max()) <= 1


def test_verify_against_the_original(tools) -> None:
    (report,) = tools.HLWQVerify.execute(CHECKPOINT, ORIGINAL).args
    assert "sound" in report and "worst layers" in report, report


def test_quantize_then_find_verify_and_load(tools, made: Path) -> None:
    from comfyui_hlwq.nodes import load_checkpoint, locations

    said = tools.HLWQQuantize.execute(ORIGINAL, "again", "6", "search", "ltx23", "single").args[0]
    assert "59 layers" in said or "layers quantized" in said
    assert "again.safetensors" in locations.checkpoints()
    assert "sound" in tools.HLWQVerify.execute("again.safetensors", ORIGINAL).args[0]
    model, vae, audio_vae, _ = load_checkpoint.load_checkpoint(locations.checkpoint("again.safetensors"))
    assert vae is not None and audio_vae is not None and model is not None


def test_repair_completes_a_copy(tools, made: Path, tiny: Path) -> None:
    shutil.copytree(tiny / "models" / "hlwq" / CHECKPOINT, made / "broken")
    sorted((made / "broken" / "polarquant" / "codes").iterdir())[1].unlink()
    assert "NOT complete" in tools.HLWQInspect.execute("broken").args[0]
    assert "layers quantized" in tools.HLWQRepair.execute("broken", ORIGINAL).args[0]
    assert "NOT complete" not in tools.HLWQInspect.execute("broken").args[0]
    assert "nothing is missing" in tools.HLWQRepair.execute("broken", ORIGINAL).args[0]


def test_cancel_stops_and_leaves_no_target(tools, made: Path) -> None:
    from comfy import model_management

    model_management.interrupt_current_processing(True)
    with pytest.raises(model_management.InterruptProcessingException):
        tools.HLWQQuantize.execute(ORIGINAL, "stopped", "5", "author", "ltx23", "published")
    assert not (made / "stopped").exists()
    # Queued again, it runs to its end.
    tools.HLWQQuantize.execute(ORIGINAL, "stopped", "5", "author", "ltx23", "published")
    assert (made / "stopped" / "polarquant" / "codes").is_dir()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_cancel_stops_verify_and_repair(tools, made: Path, tiny: Path) -> None:
    from comfy import model_management

    shutil.copytree(tiny / "models" / "hlwq" / CHECKPOINT, made / "broken")
    sorted((made / "broken" / "polarquant" / "codes").iterdir())[1].unlink()
    before = contents(made / "broken")
    for node in (tools.HLWQVerify, tools.HLWQRepair):
        model_management.interrupt_current_processing(True)
        with pytest.raises(model_management.InterruptProcessingException):
            node.execute("broken", ORIGINAL)
        assert contents(made / "broken") == before
    assert "layers quantized" in tools.HLWQRepair.execute("broken", ORIGINAL).args[0]


def test_cancel_stops_a_download_that_then_goes_on(tools, made: Path, tiny: Path, monkeypatch) -> None:
    from comfy import model_management
    from huggingface_hub import constants

    folder = tiny / "models" / "hlwq" / CHECKPOINT
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.safetensors")}
    repository = repositories()[0]
    target = made / repository.split("/")[1]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    hub = Hub()
    try:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        hub.models[repository] = files
        model_management.interrupt_current_processing(True)
        with pytest.raises(model_management.InterruptProcessingException):
            tools.HLWQDownload.execute(repository)
        assert not list(target.rglob("*.safetensors")), "nothing is whole yet"
        said = tools.HLWQDownload.execute(repository).args[0]
        assert f"{len(files)} files fetched" in said
        assert {name: (target / name).read_bytes() for name in files} == files
    finally:
        hub.stop()


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "C:\\x", "dot."])
def test_names_cannot_leave_the_folder(tools, name: str) -> None:
    assert tools.HLWQQuantize.validate_inputs(ORIGINAL, name, "published") is not True


def test_only_models_of_the_folders_can_be_named(tools) -> None:
    assert "asks for the model" in tools.HLWQQuantize.validate_inputs("../../etc/passwd", "x", "published")
    assert tools.HLWQVerify.validate_inputs(checkpoint="../x") is not True
    assert tools.HLWQVerify.validate_inputs(checkpoint=CHECKPOINT) is True


def test_download_refuses_offline(tools) -> None:
    from comfyui_hlwq.hlwq_core.errors import DownloadError

    with pytest.raises(DownloadError, match="offline"):
        tools.HLWQDownload.execute(repositories()[0])
