"""The nodes' lists while model folders hold anything: read from what threads keep, never looked for in the event loop."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.attacks import folders

CHECKPOINT = "LTX-2.3-tiny-HLWQ-Q5"
CODES = folders.safetensors({"a.weight__packed": folders.tensor([4], 0, 4, "U8")}, bytes(4))


@pytest.fixture
def listing(pack: ModuleType, comfy_base: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module as after a fresh start."""
    from comfyui_hlwq.nodes import listing

    monkeypatch.setattr(listing, "_folders", {})
    monkeypatch.setattr(listing, "_derived", {})
    monkeypatch.setattr(listing, "_first_answer_until", None)
    monkeypatch.setattr(listing, "_answer_until", 0.0)
    return listing


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """Another folder of `hlwq`, as extra_model_paths.yaml adds it."""
    import folder_paths

    folder_paths.add_model_folder_path("hlwq", str(tmp_path))
    yield tmp_path
    folder_paths.folder_names_and_paths["hlwq"][0].remove(str(tmp_path))


def seconds(call, *args, **options) -> float:
    started = time.monotonic()
    call(*args, **options)
    return time.monotonic() - started


def nodes() -> list:
    """Those that offer files of the model folders."""
    from comfyui_hlwq.nodes import extension

    without = ("upscale_latent", "save_audio_video")
    return [extension.node_of(name) for name in extension.NODES if name not in without]


@pytest.fixture
def patient(listing: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, what is looked for is waited for."""
    for name in ("FIRST", "AGAIN", "FRESH"):
        monkeypatch.setattr(listing, name, 60.0)


@pytest.mark.usefixtures("patient")
def test_the_first_answer_has_everything_where_folders_are_sane(listing: ModuleType) -> None:
    from comfyui_hlwq.nodes import locations

    assert CHECKPOINT in locations.checkpoints(now=False)
    assert locations.upscalers(now=False) and locations.text_encoders(now=False)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("name", folders.ATTACKS)
def test_no_node_vanishes(listing: ModuleType, elsewhere: Path, name: str) -> None:
    folders.ATTACKS[name](elsewhere)
    try:
        for node in nodes():
            node.GET_SCHEMA().validate()
        options = nodes()[0].define_schema().inputs[0].options
        assert CHECKPOINT in options
    finally:
        folders.remove_deep_tree(elsewhere)


def test_a_drive_that_hangs(listing: ModuleType, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from comfyui_hlwq.nodes import locations

    plugged = threading.Event()
    real = listing.scan

    def hang(root, *args, **options):
        if root == str(elsewhere):
            plugged.wait(60)
        return real(root, *args, **options)

    monkeypatch.setattr(listing, "scan", hang)
    (elsewhere / "mine.safetensors").write_bytes(CODES)
    try:
        # Far from the minute that the drive takes, and far from what a busy machine adds to the two seconds that are allowed.
        assert seconds(lambda: [node.define_schema() for node in nodes()]) < 20
        assert CHECKPOINT in locations.checkpoints(now=False)
        # The first answer is given: nobody waits for that folder again.
        waited: list[list[str]] = []
        real_wait = listing._wait
        monkeypatch.setattr(
            listing, "_wait", lambda f, *rest: waited.append([x.scan.root for x in f]) or real_wait(f, *rest)
        )
        listing.kept([str(elsewhere), *locations.roots("hlwq")])
        assert listing._first_answer_until < time.monotonic() and str(elsewhere) not in waited[1]
        assert any("still being looked through" in line for line in listing.not_listed())
        monkeypatch.setattr(listing, "_HANGS", 0.0)
        assert not listing.answers(elsewhere)
        assert seconds(lambda: locations.refusal((locations.checkpoint, "nowhere"))) < 20
    finally:
        plugged.set()
    deadline = time.monotonic() + 60  # the look that hung goes on, on a busy machine not at once
    while "mine.safetensors" not in locations.checkpoints() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "mine.safetensors" in locations.checkpoints()


@pytest.mark.usefixtures("patient")
def test_a_refresh_finds_what_was_added(listing: ModuleType, elsewhere: Path) -> None:
    from comfyui_hlwq.nodes import locations

    assert "new.safetensors" not in locations.checkpoints(now=False)
    (elsewhere / "new.safetensors").write_bytes(CODES)
    deadline = time.monotonic() + 10
    while "new.safetensors" not in locations.checkpoints(now=False) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "new.safetensors" in locations.checkpoints(now=False)
    (elsewhere / "new.safetensors").unlink()
    assert "new.safetensors" not in locations.checkpoints()


def test_what_no_list_has_yet_can_be_named(listing: ModuleType, elsewhere: Path) -> None:
    from comfyui_hlwq.nodes import locations, text_encoder

    locations.checkpoints()
    (elsewhere / "new.safetensors").write_bytes(CODES)
    assert locations.checkpoint("new.safetensors") == elsewhere / "new.safetensors"
    names = {"text_encoder": "new.safetensors", "checkpoint": "new.safetensors"}
    assert text_encoder.HLWQLoadTextEncoder.validate_inputs(**names) is True
    assert "your folders hold" in text_encoder.HLWQLoadTextEncoder.validate_inputs(
        **{**names, "text_encoder": "nowhere"}
    )


def test_why_something_is_not_listed_is_said_once(
    listing: ModuleType, elsewhere: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from comfyui_hlwq.hlwq_core.errors import InputError
    from comfyui_hlwq.nodes import locations, routes

    folders.written(folders.LFS_POINTER)(elsewhere)
    with caplog.at_level(logging.INFO, "hlwq"):
        for _ in range(3):
            locations.checkpoints()
    said = [record.getMessage() for record in caplog.records if "Git LFS pointer" in record.getMessage()]
    assert len(said) == 1 and str(elsewhere / "x.safetensors") in said[0]
    assert any("x.safetensors: a Git LFS pointer" in line for line in routes.report(CHECKPOINT)["not_listed"])
    with pytest.raises(InputError) as caught:
        routes.report("")
    assert "Git LFS pointer" in str(caught.value)


def test_a_fault_of_ours_takes_no_node_down(
    listing: ModuleType, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfyui_hlwq.nodes import locations

    def broken(root, *args, **options):
        raise RecursionError("maximum recursion depth exceeded")

    monkeypatch.setattr(listing, "scan", broken)
    for node in nodes():
        node.GET_SCHEMA().validate()
    assert not locations.checkpoints()
    assert any("RecursionError" in line for line in listing.not_listed())


def test_a_hundred_thousand_files(listing: ModuleType, elsewhere: Path) -> None:
    from comfyui_hlwq.nodes import locations

    folders.many_files(100_000)(elsewhere)
    (elsewhere / "zz" / "codes").mkdir(parents=True)
    (elsewhere / "zz" / "codes" / "mine.safetensors").write_bytes(CODES)
    for node in nodes():
        node.define_schema()
    deadline = time.monotonic() + 120
    while not all(folder.finished for folder in listing._folders.values()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "zz" in locations.checkpoints(now=False)
    assert any("the rest is not listed" in line for line in listing.not_listed())
