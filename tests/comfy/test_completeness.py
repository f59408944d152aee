"""One answer to "is it whole?": the loader, the panel under it, Inspect, Verify and Repair give the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from safetensors.torch import load_file, save_file

NAME = "whole-or-not"
PREFIX = "model.diffusion_model."
# What alone told LTX-2.3 from LTX-2, once.
MARKS = ("text_embedding_projection.", f"{PREFIX}prompt_adaln_single.", "vocoder.bwe_generator.")


def without(*prefixes: str) -> Callable[[str], bool]:
    return lambda name: not name.replace("__", ".").startswith(prefixes)


WHOLE, LOST = True, False
CASES = {
    "as it is": (without("nothing"), WHOLE, 0),
    "less the 567 tensors that mark LTX-2.3": (without(*MARKS), LOST, 567),
    "less one plain tensor": (without(f"{PREFIX}scale_shift_table"), LOST, 1),
    "the transformer alone": (lambda name: name.replace("__", ".").startswith(PREFIX), WHOLE, 0),
    "less the video VAE": (without("vae."), WHOLE, 0),
    "less a part of the audio VAE": (without("vocoder.bwe_generator."), LOST, 557),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tiny: Path, comfy_base: Path):
    """A copy of the tiny checkpoint in the model folders, some tensors left out; whether it is whole, what is missing."""
    keep, is_whole, missing = CASES[request.param]
    source = tiny / "models" / "hlwq" / "LTX-2.3-tiny-HLWQ-Q5"
    folder = comfy_base / "models" / "hlwq" / NAME
    for path in sorted((source / "polarquant").rglob("*.safetensors")):
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: value for name, value in load_file(path).items() if keep(name)}
        save_file(tensors, target)
    shutil.copy(source / "config.json", folder)
    yield folder, is_whole, missing
    shutil.rmtree(folder)


def test_five_answers_are_one(pack: ModuleType, case, tiny: Path) -> None:
    from comfyui_hlwq.hlwq_core.checkpoints import completeness
    from comfyui_hlwq.hlwq_core.checkpoints.checkpoint import open_checkpoint
    from comfyui_hlwq.hlwq_core.errors import IncompleteError
    from comfyui_hlwq.hlwq_core.tools import inspect, verify
    from comfyui_hlwq.nodes import model_loading, routes

    folder, is_whole, missing = case
    try:
        model_loading.open_complete(folder)
        loads, said = True, 0
    except IncompleteError as error:
        loads, said = False, int(error.what.split(" ")[0])
    panel, found, checked = routes.report(NAME), inspect.inspect(folder), verify.verify(folder)
    lacking = [problem for problem in checked.problems if problem.kind == "missing"]
    assert [loads, panel["complete"], found.complete, checked.ok, not lacking] == [is_whole] * 5
    assert [said, panel["missing"], len(found.missing)] == [missing] * 3
    assert not lacking or f" {missing} " in f" {lacking[0].what} "
    assert {part["name"] for part in panel["absent"]} == set(found.absent)
    assert found.model == panel["model"] == "LTX-2.3 of another size"
    assert completeness.whole(open_checkpoint(folder)).complete == is_whole


def test_repair_ends_where_the_loader_begins(pack: ModuleType, case, tiny: Path) -> None:
    from comfyui_hlwq.hlwq_core.tools.repair import repair
    from comfyui_hlwq.nodes import model_loading

    folder, is_whole, missing = case
    result = repair(folder, tiny / "models" / "reference" / "ltx23_tiny_bf16.safetensors")
    assert not result.still_missing and len(result.kept) >= missing
    assert model_loading.open_complete(folder).whole.absent == []
