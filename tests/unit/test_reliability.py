"""docs/reliability.md is made of the committed results, and none of them is a fault."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

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
