"""docs/compatibility.md: what it says is what the committed results say, and those are complete."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def compatibility() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hlwq_compatibility", REPO / "scripts" / "compatibility.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(REPO / "scripts"))
    hidden = {name: sys.modules.pop(name, None) for name in ("environment", "test")}
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(REPO / "scripts"))
        sys.modules.update({name: known for name, known in hidden.items() if known is not None})
    return module


def test_the_page_says_what_the_results_say(compatibility: ModuleType) -> None:
    made = compatibility.page(compatibility.read_results())
    assert compatibility.PAGE.read_text() == made, "run: python3 scripts/compatibility.py page"


def test_the_page_says_what_is_still_to_be_run(compatibility: ModuleType) -> None:
    done = {"passed": 1, "failed": {}, "skipped": {}, "passed_alone": [], "date": "", "pack": ""}
    done |= {"packages": {"torch": "2"}, "python": "3.12.1", "system": ""}
    results: dict = {key: {part: done for part in row.parts} for key, row in compatibility.ROWS.items()}
    assert "Still to be run" not in compatibility.page(results)
    del results["0.33.0"]["comfy"]
    del results["python-3.12"]["demo"]
    page = compatibility.page(results)
    assert "python3 scripts/compatibility.py run 0.33.0 comfy " in page
    assert "python3.12 scripts/compatibility.py run python-3.12 demo " in page
    assert page.count("scripts/compatibility.py run") == 2


def test_results_and_rows_name_each_other(compatibility: ModuleType) -> None:
    assert {path.stem for path in compatibility.RESULTS.glob("*.json")} <= set(compatibility.ROWS)
    for key, row in compatibility.ROWS.items():
        for part, result in compatibility.read_results()[key].items():
            assert part in compatibility.PARTS
            assert result["python"].startswith(row.python)
            for wanted in row.wanted:
                name, _, version = wanted.partition("==")
                assert not version or result["packages"][name] == version
            assert "dirty" not in result["pack"], f"{key}, {part}: run it on a committed state"


def test_every_folder_of_tests_is_in_a_column(compatibility: ModuleType) -> None:
    columns = {Path(argument) for arguments in compatibility.PARTS.values() for argument in arguments}
    tests = [path.relative_to(REPO) for path in (REPO / "tests").rglob("test_*.py")]
    assert not [test for test in tests if columns.isdisjoint((test, *test.parents))]


TESTS = """
import os, pytest
def test_good(): pass
@pytest.mark.parametrize('x', ['a::b', 'c'])
def test_bad(x): assert x == 'c', 'first\\nsecond | line'
@pytest.mark.skip(reason='no card')
def test_skipped(): pass
@pytest.fixture
def broken(): raise OSError('port')
def test_setup(broken): pass
@pytest.fixture
def untidy():
    yield
    raise OSError('left')
def test_teardown(untidy): pass
def test_ends_it_all(): os.environ.get('DIE') and os._exit(3)
def test_after_that(): pass
"""


@pytest.fixture
def started(tmp_path: Path) -> Callable[..., int]:
    """`started(file, **variables)`: pytest on the tests above, with outcomes in the file; its exit code."""
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "test_whole.py").write_text("import pytest\npytest.importorskip('no_such_module_here')\n")
    (tmp_path / "conftest.py").write_text(
        f"import sys, pathlib\nsys.path.insert(0, {str(REPO / 'tests')!r})\nimport os, outcomes\n"
        "def pytest_configure(config):\n"
        "    config.pluginmanager.register(outcomes.Outcomes(pathlib.Path(os.environ['KEPT'])))\n"
    )

    def start(file: Path, **variables: str) -> int:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
        command += ["--rootdir", str(tmp_path), str(tmp_path)]
        environment = {**os.environ, "KEPT": str(file), **variables}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=120).returncode

    return start


def test_outcomes_are_kept_as_they_come_and_gone_on_with(
    compatibility: ModuleType, started: Callable[..., int], tmp_path: Path
) -> None:
    kept = tmp_path / "kept.jsonl"
    assert started(kept, DIE="1") == 3
    before = compatibility.outcomes(kept)
    assert "test_it.py::test_good" in before and "test_it.py::test_after_that" not in before
    assert started(kept) == 0, "what failed before is not run again"
    found = compatibility.outcomes(kept)
    assert {test: state for test, (state, _) in found.items()} == {
        "test_it.py::test_good": "passed",
        "test_it.py::test_bad[a::b]": "failed",
        "test_it.py::test_bad[c]": "passed",
        "test_it.py::test_skipped": "skipped",
        "test_it.py::test_setup": "failed",
        "test_it.py::test_teardown": "failed",
        "test_it.py::test_ends_it_all": "passed",
        "test_it.py::test_after_that": "passed",
        "test_whole.py": "skipped",
    }
    assert found["test_it.py::test_skipped"][1] == "no card"
    assert "no_such_module_here" in found["test_whole.py"][1]
    assert "first second | line" in found["test_it.py::test_bad[a::b]"][1]
    assert started(kept) == 5, "nothing is left to run"
    alone = {"test_it.py::test_setup": ("passed", ""), "test_it.py::test_teardown": ("failed", "left")}
    result = compatibility.summary(found, alone)
    assert (result["passed"], list(result["failed"])) == (
        5,
        ["test_it.py::test_bad[a::b]", "test_it.py::test_teardown"],
    )
    assert result["passed_alone"] == ["test_it.py::test_setup"] and sum(result["skipped"].values()) == 2
    assert json.loads(json.dumps(result)) == result


def test_a_cell_says_failures_first_and_nothing_of_what_was_not_run(compatibility: ModuleType) -> None:
    result = {"passed": 7, "failed": {"a": "b"}, "skipped": {"no card": 2, "slow": 1}}
    assert compatibility.cell(result) == "**1 failed**, 7 passed, 3 skipped"
    assert compatibility.cell(result | {"failed": {}, "skipped": {}}) == "7 passed"
    assert compatibility.cell(None) == ""


def test_an_unknown_comfyui_is_not_recorded_as_another(compatibility: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "comfyui_version.py").write_text('# made\n__version__ = "0.99.0"\n')
    assert compatibility.version_of(tmp_path) == "0.99.0"
    (tmp_path / "comfyui_version.py").write_text("")
    with pytest.raises(compatibility.SetupError, match="names no version"):
        compatibility.version_of(tmp_path)


def test_a_run_that_was_ended_is_no_result(
    compatibility: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept.jsonl"
    kept.write_text('{"test": "a", "state": "passed", "why": ""}\n')
    environment = compatibility.Environment(Path(sys.executable), tmp_path, tmp_path)
    monkeypatch.setattr(compatibility, "_pytest", lambda *_: 2)
    with pytest.raises(compatibility.SetupError, match="after 1 tests; the same command goes on"):
        compatibility.run(environment, "unit", 1.0, kept, "abc")
    monkeypatch.setattr(compatibility, "_pytest", lambda *_: 5)
    result = compatibility.run(environment, "unit", 1.0, kept, "abc")
    assert (result["passed"], result["failed"], result["pack"]) == (1, {}, "abc")
