"""The loader's choices: one object with a field for each input, from the node to the patchers and back through a reload."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

REPO = Path(__file__).resolve().parents[2]


def test_every_input_is_a_field(pack):
    from comfyui_hlwq.nodes.load_checkpoint import HLWQLoadCheckpoint
    from comfyui_hlwq.nodes.load_diffusion_model import HLWQLoadDiffusionModel
    from comfyui_hlwq.nodes.running.choices import Choices

    fields = {field.name: field.default for field in dataclasses.fields(Choices)}
    for node in (HLWQLoadCheckpoint, HLWQLoadDiffusionModel):
        inputs = {given.id: given.default for given in node.define_schema().inputs if given.id != "checkpoint"}
        assert inputs == fields and list(inputs) == list(fields)


def test_they_go_with_the_model_and_are_kept_by_a_reload(load):
    from comfyui_hlwq.nodes.running import choices

    chosen = {"record_blocks": False, "keep_decoded": False, "load_at_once": False, "attention": "comfyui"}
    model = load(**chosen)[0]
    reload, arguments, *_ = model.cached_patcher_init
    with torch.inference_mode():
        again = reload(*arguments, disable_dynamic=True)
    for patcher in (model, model.clone(), again):
        assert choices.of(patcher.model) == choices.Choices(**chosen)


def test_what_was_chosen_cannot_be_changed_later(pack):
    from comfyui_hlwq.nodes.running.choices import Choices

    with pytest.raises(dataclasses.FrozenInstanceError):
        Choices().mode = "fast"


def test_the_page_lists_every_emergency_switch_and_no_other():
    from hlwq_core.switches import SWITCHES

    page = (REPO / "docs" / "performance.md").read_text()
    assert set(re.findall(r"^\| `(HLWQ_\w+)", page, re.M)) == set(SWITCHES)
    for path in [*(REPO / "nodes").rglob("*.py"), *(REPO / "hlwq_core").rglob("*.py")]:
        assert 'os.environ.get("HLWQ' not in path.read_text(), f"{path}: switches are asked for in switches.py"
