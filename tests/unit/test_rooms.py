"""The rooms of the code: which may import which, no circles, a sentence each, nothing too large. scripts/rooms.py reads them."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPO = Path(__file__).resolve().parents[2]
LONGEST = 600

# Who may import whom, the ground floor first: each room and the rooms that it may import from. A new room is a line here.
LIBRARY = {
    "hlwq_core.errors": "",
    "hlwq_core.switches": "",
    "hlwq_core.comfyui": "errors",
    "hlwq_core.media": "errors",
    "hlwq_core.terminal": "",
    "hlwq_core.format": "errors",
    "hlwq_core.models": "errors format",
    "hlwq_core.backends": "errors switches format",
    "hlwq_core.running": "errors format backends",
    "hlwq_core.codec": "errors format backends",
    "hlwq_core.checkpoints": "errors format models backends",
    "hlwq_core.tools": "errors switches comfyui format models backends codec checkpoints",
    "hlwq_core.client": "errors comfyui format models media",
    "hlwq_core.batch": "errors comfyui format client media",
    "hlwq_core.generate": "client batch",
    "hlwq_core.parallel": "client",
    "hlwq_core.server": "client",
    "hlwq_core": "errors comfyui format models backends codec checkpoints tools client media",
    "hlwq_core.commands": "errors comfyui format models backends codec checkpoints tools client batch media terminal",
    "hlwq_core.cli": "errors commands",
    "hlwq_core.__main__": "cli",
}
FLOORS: dict[str, set[str]] = {
    room: {f"hlwq_core.{name}" for name in below.split()} for room, below in LIBRARY.items()
} | {
    "nodes.compat": {"hlwq_core.errors"},
    "nodes.running": {
        "nodes.compat", "hlwq_core.errors", "hlwq_core.switches", "hlwq_core.format", "hlwq_core.backends", "hlwq_core.running"
    },
    "nodes.parallel": {
        "nodes.compat", "nodes.running", "hlwq_core.errors", "hlwq_core.running", "hlwq_core.parallel"
    },
    "nodes": {
        "hlwq_core", "nodes.parallel",
        "nodes.compat", "nodes.running", "hlwq_core.errors", "hlwq_core.format", "hlwq_core.models", "hlwq_core.media",
        "hlwq_core.backends", "hlwq_core.running", "hlwq_core.codec", "hlwq_core.checkpoints", "hlwq_core.tools",
    },
}  # fmt: skip
# For its version alone.
FLOORS["hlwq_core.cli"].add("hlwq_core")
FLOORS["hlwq_core.commands"].add("hlwq_core")

# What breaks a rule today. Each list may only become shorter: what is mended must be taken out.
AGAINST_THE_FLOORS: set[tuple[str, str]] = set()
TOO_LONG: set[str] = set()


def script(name: str) -> ModuleType:
    """A module of scripts/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"hlwq_scripts_{name}", REPO / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


code = script("rooms")


@pytest.fixture(scope="module")
def found() -> dict:
    return code.modules()


def against_the_floors(found: dict) -> set[tuple[str, str]]:
    return {(room, other) for room, into in code.rooms(found).items() for other in into if other not in FLOORS[room]}


def rooms_without_a_sentence(found: dict) -> list[str]:
    return [name for name, module in found.items() if module.is_package and not module.sentence and "." in name]


def test_every_room_stands_on_its_floor(found: dict) -> None:
    rooms = code.rooms(found)
    assert set(rooms) == set(FLOORS), "a room came or went: give it its line in LIBRARY"
    by = {pair: rooms[pair[0]][pair[1]] for pair in against_the_floors(found) - AGAINST_THE_FLOORS}
    assert not by, f"imports against the floors: {by}"
    assert not AGAINST_THE_FLOORS - against_the_floors(found), "mended: take it out of the list"


def test_the_floors_themselves_have_no_circle() -> None:
    low: set[str] = set()
    while len(low) < len(FLOORS):
        next_floor = {room for room, below in FLOORS.items() if room not in low and below <= low}
        assert next_floor, f"each may import another: {sorted(set(FLOORS) - low)}"
        low |= next_floor


def test_no_module_imports_itself_round_about(found: dict) -> None:
    assert code.circles(found) == []


def test_every_room_says_in_a_sentence_what_it_is_for(found: dict) -> None:
    silent = rooms_without_a_sentence(found)
    assert not [name for name in silent if name.split(".")[0] in ("hlwq_core", "nodes", "scripts")]


def test_tests_lie_in_the_rooms_of_what_they_test(found: dict) -> None:
    folders = {path.name for path in (REPO / "tests" / "unit").iterdir() if path.is_dir() and any(path.glob("*.py"))}
    rooms = {
        name.split(".")[1] for name, module in found.items() if module.is_package and name.startswith("hlwq_core.")
    }
    assert folders <= rooms, f"no room of hlwq_core: {folders - rooms}"
    # What stands outside is of the whole: the house, scripts/, web/ and workflows/, or a module of hlwq_core without a room.
    of_the_whole = {
        "house",
        "rooms",
        "library",
        "compatibility",
        "demo_script",
        "environment",
        "first_error",
        "security",
        "dangers",
        "web_files",
        "workflow_files",
        "readers",
        "reliability",
    }
    outside = {path.stem.removeprefix("test_") for path in (REPO / "tests" / "unit").glob("test_*.py")} - of_the_whole
    assert all(f"hlwq_core.{name}" in found for name in outside), outside


def test_the_picture_and_the_page_are_of_this_code(found: dict) -> None:
    for name, made in (("rooms.svg", code.svg(found)), ("rooms.md", code.page(found))):
        assert (REPO / "docs" / name).read_text(encoding="utf-8") == made, f"docs/{name}: run scripts/rooms.py"
    assert all(f">{room.removeprefix('hlwq_core.')}</text>" in code.svg(found) for room in FLOORS)


def test_no_file_is_longer_than_a_reader_holds_in_mind() -> None:
    long = set()
    for folder in ("hlwq_core", "nodes", "scripts", "benchmarks", "tests"):
        for path in (REPO / folder).rglob("*.py"):
            if len(path.read_text(encoding="utf-8").splitlines()) > LONGEST:
                long.add(path.relative_to(REPO).as_posix())
    assert long == TOO_LONG, "split what became too long; take out of the list what no longer is"


def copy(folder: Path) -> Path:
    for name in ("hlwq_core", "nodes", "scripts", "benchmarks", "tests"):
        shutil.copytree(
            REPO / name, folder / name, ignore=lambda _, names: [n for n in names if "." in n and not n.endswith(".py")]
        )
    return folder


def test_what_breaks_a_rule_is_seen(tmp_path: Path) -> None:
    root = copy(tmp_path)
    (root / "hlwq_core" / "format" / "greedy.py").write_text('"""Reaches up."""\nfrom ..tools import verify\n')
    (root / "hlwq_core" / "attic").mkdir()
    (root / "hlwq_core" / "attic" / "__init__.py").write_text("")
    (root / "scripts" / "first.py").write_text("def later():\n    import second\n")
    (root / "scripts" / "second.py").write_text("import first\n")
    found = code.modules(root)
    assert ("hlwq_core.format", "hlwq_core.tools") in {
        (room, other)
        for room, into in code.rooms(found).items()
        for other in into
        if other not in FLOORS.get(room, set())
    }
    assert "hlwq_core.attic" in rooms_without_a_sentence(found) and "hlwq_core.attic" in code.rooms(found)
    assert ["scripts.first", "scripts.second"] in code.circles(found)


def test_a_function_that_branches_too_often_is_refused(tmp_path: Path) -> None:
    """Ruff's own rule, as pyproject.toml sets it: C901 with 15."""
    branches = "".join(f"    if x == {n}:\n        return {n}\n" for n in range(16))
    (tmp_path / "much.py").write_text(f"def much(x):\n{branches}    return x\n")
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--config", REPO / "pyproject.toml", "much.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "C901" in done.stdout, done.stdout + done.stderr
