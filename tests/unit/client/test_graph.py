"""Workflows in API form: --set, the names of files, and what is none."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from hlwq_core.client import graph
from hlwq_core.errors import InputError

from .fake_comfy import INFO

pytestmark = pytest.mark.timeout(60)


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


@pytest.mark.parametrize(("loader", "report"), [("HLWQLoadCheckpoint", 3), ("HLWQLoadDiffusionModel", 1)])
def test_loras_and_the_report_go_to_either_loader(loader: str, report: int) -> None:
    nodes = {
        "1": {"class_type": loader, "inputs": {"checkpoint": "a"}},
        "2": {"class_type": "CFGGuider", "inputs": {"model": ["1", 0]}},
    }
    graph.add_loras(nodes, [("style.safetensors", 0.5)])
    assert nodes["2"]["inputs"]["model"] == ["3", 0] and nodes["3"]["inputs"]["model"] == ["1", 0]
    shown = graph.add_report(nodes)
    assert shown is not None and nodes[shown]["inputs"]["source"] == ["1", report]


def test_files_of_another_version_are_not_meant() -> None:
    """With two versions beside each other the workflow of one takes its own; where only the other is, nothing is guessed."""
    options = ["LTX-2.3-tiny-HLWQ-Q5", "ltx25_distilled_tiny.safetensors", "ltx-2-19b-HLWQ-Q5"]
    assert graph.match("LTX-2.3-22B-HLWQ-Q5", options) == ["LTX-2.3-tiny-HLWQ-Q5"]
    assert graph.match("ltx-2.5-22b-distilled-HLWQ-Q5.safetensors", options) == ["ltx25_distilled_tiny.safetensors"]
    assert graph.match("ltx-2-19b-dev-HLWQ.safetensors", options) == ["ltx-2-19b-HLWQ-Q5"]
    gemmas = ["gemma4-12b-with-proj.safetensors", "gemma_3_tiny.safetensors"]
    assert graph.match("gemma_3_12B_it.safetensors", gemmas) == ["gemma_3_tiny.safetensors"]
    assert graph.match("gemma4-12b.safetensors", gemmas[1:]) == []


@pytest.mark.parametrize("stem", ["text_to_video", "two_stage"])
def test_calibrate_stands_behind_the_model(stem: str) -> None:
    nodes = graph.load(graph.SHIPPED / f"hlwq_ltx23_{stem}.json")
    before = copy.deepcopy(nodes)
    graph.add_loras(nodes, [("mine.safetensors", 0.5)])
    graph.add_calibration(nodes, "mine", "full")
    (number,) = (i for i, node in nodes.items() if node["class_type"] == "HLWQCalibrate")
    inputs = nodes[number]["inputs"]
    assert inputs["name"] == "mine" and inputs["moments"] == "full"
    source = inputs["model"]
    users = [node for node in nodes.values() if number in [v[0] for v in node["inputs"].values() if graph.is_link(v)]]
    assert users and all(source not in node["inputs"].values() for i, node in nodes.items() if i != number)
    assert len(nodes) == len(before) + 2
