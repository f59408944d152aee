"""docs/reliability.md is made of the committed results, and none of them is a fault."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("reliability", REPO / "scripts" / "reliability.py")
assert spec and spec.loader
reliability = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reliability)


def test_the_page_is_made_of_the_results() -> None:
    assert reliability.PAGE.read_text("utf-8") == reliability.page(), "run scripts/reliability.py"


def test_the_results_name_readers_and_works_that_are_there() -> None:
    from ..attacks import kills, readers

    fuzz = json.loads((reliability.RESULTS / "fuzz.json").read_text("utf-8"))
    killed = json.loads((reliability.RESULTS / "kills.json").read_text("utf-8"))
    assert set(fuzz) <= set(readers.READERS) and set(killed) <= set(kills.WORKS)
    assert not [name for name, result in fuzz.items() if result["fault"]]
    assert not [name for name, result in killed.items() if result["faults"]]


def test_a_soak_and_batches_went_well() -> None:
    from ..attacks import batches

    for name in ("soak", "soak_card"):
        soaked = json.loads((reliability.RESULTS / f"{name}.json").read_text("utf-8"))
        assert soaked["faults"] == [] and len(soaked["looks"]) > 1
    rounds = json.loads((reliability.RESULTS / "batches.json").read_text("utf-8"))
    assert set(rounds) <= set(batches.CALLS)
    for result in rounds.values():
        assert result["faults"] == [] and result["outputs"] == batches.JOBS * result["rounds"]


LOOK = {
    **dict.fromkeys(("rss_mb", "own_mb", "card_mb"), 1000.0),
    **dict.fromkeys(("threads", "files", "sockets", "mapped", "temporary", "unfinished"), 5),
    **dict.fromkeys(("names", "temporary_names"), []),
}


@pytest.mark.parametrize("name", [name for name in LOOK if not name.endswith("names")])
def test_a_soak_notices_what_grows(name: str) -> None:
    from ..attacks import soak

    assert soak.judge([LOOK, {**LOOK, "rss_mb": 1049.0}], ["a", "a"]) == []
    (fault,) = soak.judge([LOOK, {**LOOK, name: LOOK[name] * 1.06 if name.endswith("mb") else 6}], ["a", "a"])
    assert fault.startswith(name)
    assert soak.judge([LOOK, LOOK], ["a", "b"])


def test_a_round_notices_what_is_missing_or_left(tmp_path: Path) -> None:
    from ..attacks import batches

    def whole(path: Path) -> None:
        assert path.read_text() == "film"

    state = tmp_path / "out" / ".hlwq-batch"
    (state / "parts").mkdir(parents=True)
    (tmp_path / "temp").mkdir()
    names = [f"{number:02}.mp4" for number in range(batches.JOBS)]
    for name in names:
        (tmp_path / "out" / name).write_text("film")
    lines = [{"files": [{"name": name}], "tries": 1} for name in names]

    def write(told: list[dict[str, object]], events: int = batches.JOBS) -> None:
        (tmp_path / "out" / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
        (state / "journal.jsonl").write_text('{"event": "made"}\n' * events)

    call = batches.Call(tmp_path, [], {}, 1.0, whole)
    write(lines)
    assert batches.check(call) == []
    write(lines, batches.JOBS + 1)
    assert "13 made" in batches.check(call)[0]
    write(lines[1:])
    assert "11 in the manifest" in batches.check(call)[0]
    write([{**lines[0], "tries": 2}, *lines[1:]])
    assert "costs none" in batches.check(call)[0]
    write(lines)
    (tmp_path / "out" / names[0]).write_text("fi")
    (state / "parts" / "a").touch()
    assert ["00.mp4" in fault or "litter" in fault for fault in batches.check(call)] == [True, True]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
def test_a_round_finds_the_processes_that_are_left(tmp_path: Path) -> None:
    from ..attacks import batches

    call = batches.Call(tmp_path, [], {}, 1.0, lambda path: None, patience=0)
    code = "import sys, time; print(flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", code, "/x/main.py"],
        env=os.environ | {batches.MARK: str(tmp_path)},
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout and process.stdout.readline()
        try:
            (left,) = call.left()[1]
            assert left.startswith(f"{process.pid} {sys.executable}") and left.endswith("/x/main.py ")
        finally:
            process.kill()
    assert call.left()[1] == []
