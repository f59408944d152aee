"""What was seen of the pack on which ComfyUI, Python and torch: runs the tests there, keeps the results, writes the page.

    python3 scripts/compatibility.py run 0.33.0 unit comfy --comfyui PATH     these tests on that row's environment
    python3 scripts/compatibility.py page                                     docs/compatibility.md of all results

A row whose Python is named is run by that Python (python3.12 scripts/compatibility.py run ...). A test that failed is
run once more on its own; if it passes then it counts as passed, and the page says so. A run that is ended is kept:
the same command goes on where it was, as long as the pack is at the same commit.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environment import REPO, Environment, SetupError, ensure, package_name, say

RESULTS = REPO / "tests" / "compatibility"
PAGE = REPO / "docs" / "compatibility.md"

# Column of the page -> pytest's arguments. Every folder of tests is in one of them.
PARTS = {
    "unit": ["tests/unit", "--ignore=tests/unit/test_compatibility.py"],  # that one holds what is being made here
    "comfy": ["tests/comfy"],
    "http": ["tests/http", "--ignore=tests/http/test_demo.py"],
    "demo": ["tests/http/test_demo.py"],
    "browser": ["tests/browser"],
    "install": ["tests/install"],
    "benchmarks": ["tests/benchmarks"],
}
ABOUT = {
    "unit": "without a ComfyUI",
    "comfy": "in one process with ComfyUI",
    "http": "a ComfyUI server, its API, the workflows",
    "demo": "`scripts/demo.py`",
    "browser": "ComfyUI's page in Chromium",
    "install": "ComfyUI-Manager, oldest frontend",
    "benchmarks": "the measuring scripts",
}
ALL = tuple(PARTS)

# Said for each row: the packages whose versions decide what happens.
COMPANIONS = (
    "torch",
    "torchvision",
    "torchaudio",
    "comfy-kitchen",
    "comfy-aimdo",
    "comfyui-frontend-package",
    "comfyui-workflow-templates",
    "comfyui-manager",
    "transformers",
    "numpy",
    "safetensors",
    "huggingface-hub",
    "av",
)
NEWEST = (
    "comfy-aimdo==0.6.0",
    "comfy-kitchen==0.2.40",
    "comfyui-frontend-package==1.58.1",
    "comfyui-workflow-templates==0.11.97",
    "comfyui-manager==4.3",
)


@dataclass(frozen=True)
class Row:
    """One environment of the page.

    Args:
        title: as the page says it.
        version: what that ComfyUI calls itself.
        parts: the cells that must be filled; others may be.
        wanted: packages that replace ComfyUI's pins, as `scripts/test.py --with`.
        python: the Python that must run it, "3.12"; any if empty.
    """

    title: str
    version: str
    parts: tuple[str, ...]
    wanted: tuple[str, ...] = ()
    python: str = ""


ROWS = {
    "0.30.0": Row("ComfyUI 0.30.0", "0.30.0", ALL),
    "0.30.0-newest": Row("ComfyUI 0.30.0 with the newest companions, beyond its pins", "0.30.0", ALL, NEWEST),
    "0.31.0": Row("ComfyUI 0.31.0", "0.31.0", ("unit", "comfy")),
    "0.32.0": Row("ComfyUI 0.32.0", "0.32.0", ("unit", "comfy")),
    "0.33.0": Row("ComfyUI 0.33.0", "0.33.0", ("unit", "comfy")),
    "2026-08-22": Row("ComfyUI's master of 2026-08-22 (783545f6)", "0.33.0", ALL),
    "2026-08-22-torch": Row(
        "ComfyUI's master of 2026-08-22 with the newest torch that it allows",
        "0.33.0",
        ("unit", "comfy"),
        ("torch", "torchvision", "torchaudio"),
    ),
    "python-3.10": Row("ComfyUI 0.30.0 on Python 3.10", "0.30.0", ("unit", "comfy", "demo"), python="3.10"),
    "python-3.12": Row("ComfyUI 0.30.0 on Python 3.12", "0.30.0", ("unit", "comfy", "demo"), python="3.12"),
    "python-3.13": Row("ComfyUI 0.30.0 on Python 3.13", "0.30.0", ("unit", "comfy", "demo"), python="3.13"),
}


def outcomes(file: Path) -> dict[str, tuple[str, str]]:
    """What became of each test: id -> ("passed" | "failed" | "skipped", why), as tests/outcomes.py wrote it."""
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    return {entry["test"]: (entry["state"], entry["why"]) for entry in map(json.loads, lines)}


def summary(first: dict[str, tuple[str, str]], alone: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """Counts, failures and skips of a run, of which `alone` ran the failed ones once more."""
    last = first | alone
    return {
        "passed": sum(state == "passed" for state, _ in last.values()),
        "failed": {test: why for test, (state, why) in sorted(last.items()) if state == "failed"},
        "skipped": dict(sorted(Counter(why for state, why in last.values() if state == "skipped").items())),
        "passed_alone": sorted(test for test, (state, _) in alone.items() if state == "passed"),
    }


def _pytest(environment: Environment, arguments: Sequence[str], deadline: float, file: Path) -> int:
    command = [sys.executable, str(REPO / "scripts" / "test.py"), "--python", str(environment.python)]
    command += ["--comfyui", str(environment.comfyui), "--deadline", str(deadline), *arguments]
    # What is asked is whether it works there; a busy machine says nothing about that.
    command += ["-q", "--timeout=1200"]
    variables = os.environ | {"HLWQ_CACHE": str(environment.cache), "HLWQ_OUTCOMES": str(file.absolute())}
    return subprocess.run(command, cwd=REPO, env=variables).returncode


def run(environment: Environment, part: str, deadline: float, kept: Path, pack: str) -> dict[str, Any]:
    """Run one cell's tests, the failed ones twice; what the page needs to know of it.

    Args:
        kept: where outcomes are kept until all are there; a run that was ended goes on from what is in it.
        pack: the commit of the pack.

    Raises:
        SetupError: pytest was ended before its last test.
    """
    code = _pytest(environment, PARTS[part], deadline, kept)
    first = outcomes(kept)
    if code not in (0, 1, 5):  # 5: nothing was left to run
        raise SetupError(f"pytest ended with {code} after {len(first)} tests; the same command goes on from there")
    alone: dict[str, tuple[str, str]] = {}
    if failed := [test for test, (state, _) in first.items() if state == "failed"]:
        say(f"{len(failed)} failed; once more on their own")
        with tempfile.TemporaryDirectory() as folder:
            _pytest(environment, failed, deadline, Path(folder) / "alone.jsonl")
            alone = outcomes(Path(folder) / "alone.jsonl")
    return {
        "date": datetime.date.today().isoformat(),
        "pack": pack,
        "packages": _versions(environment.python),
        "python": _output(environment.python, "import platform; print(platform.python_version())"),
        "system": f"{platform.system()} {platform.machine()}",
        **summary(first, alone),
    }


def _output(python: Path, code: str) -> str:
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout.strip()


def _versions(python: Path) -> dict[str, str]:
    code = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    installed = {package_name(name): version for name, version in json.loads(_output(python, code)).items()}
    return {name: installed.get(name, "not installed") for name in COMPANIONS}


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=REPO, capture_output=True, text=True, check=True).stdout.strip()


def _state() -> str:
    """The commit of the pack; files that this script writes may differ from it, others are said to."""
    others = [f":!{path.relative_to(REPO)}" for path in (RESULTS, PAGE)]
    changed = _git("status", "--porcelain", "--", ".", *others)
    return _git("rev-parse", "--short=10", "HEAD") + ("-dirty" if changed else "")


def version_of(comfyui: Path) -> str:
    """What a ComfyUI calls itself."""
    for line in (comfyui / "comfyui_version.py").read_text().splitlines():
        if line.startswith("__version__"):
            return line.split('"')[1]
    raise SetupError(f"{comfyui / 'comfyui_version.py'} names no version")


def read_results(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Row -> part -> result, in the order of the page."""
    return {
        key: json.loads((folder / f"{key}.json").read_text()) if (folder / f"{key}.json").is_file() else {}
        for key in ROWS
    }


def cell(result: dict[str, Any] | None) -> str:
    """One cell of the table; empty for what was not run."""
    if result is None:
        return ""
    words = [f"{result['passed']} passed"]
    if skipped := sum(result["skipped"].values()):
        words.append(f"{skipped} skipped")
    if result["failed"]:
        words.insert(0, f"**{len(result['failed'])} failed**")
    return ", ".join(words)


def _table(rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + " --- |" * lines[0].count(" |"), *lines[1:]]


def _details(row: Row, results: dict[str, dict[str, Any]]) -> list[str]:
    """The section under the table that says what a row's cells mean."""
    lines = [f"### {row.title}", ""]
    shown: dict[str, list[str]] = {}
    for part, result in results.items():
        packages = ", ".join(f"{name} {version}" for name, version in result["packages"].items())
        shown.setdefault(f"Python {result['python']}, {packages}.", []).append(part)
    for packages, parts in shown.items():
        lines += [f"{', '.join(parts)}: {packages}" if len(shown) > 1 else packages, ""]
    for part, result in results.items():
        lines.append(f"- {part}: {cell(result)}. {result['date']}, pack at {result['pack']}, {result['system']}.")
        lines += [f"  - failed: `{test}`: {_plain(why)}" for test, why in result["failed"].items()]
        lines += [f"  - passed only on its own, not among the others: `{test}`" for test in result["passed_alone"]]
        lines += [f"  - skipped, {count}: {_plain(why)}" for why, count in result["skipped"].items()]
    return [*lines, ""]


def _to_run(results: dict[str, dict[str, Any]]) -> list[str]:
    """What is promised and was not run, as a list of commands; empty if there is nothing."""
    lines = []
    for key, row in ROWS.items():
        if missing := [part for part in row.parts if part not in results[key]]:
            python = f"python{row.python or '3'}"
            lines.append(f"    {python} scripts/compatibility.py run {key} {' '.join(missing)} --comfyui PATH")
    return ["", "Still to be run:", "", *lines] if lines else []


def _plain(text: str) -> str:
    """A message on one line of Markdown: no emphasis, HTML or table out of what a test said."""
    for special in "\\`*_<|[":
        text = text.replace(special, "\\" + special)
    return text


def page(results: dict[str, dict[str, Any]]) -> str:
    """The text of docs/compatibility.md."""
    head = ["ComfyUI", "Python", "torch", *PARTS]
    table = [head]
    for key, row in ROWS.items():
        ran = next(iter(results[key].values()), None)
        where = [ran["python"], ran["packages"]["torch"]] if ran else [row.python, ""]
        table.append([row.title, *where, *(cell(results[key].get(part)) for part in PARTS)])
    lines = [
        "# Where it was seen to work",
        "",
        "Made by `python3 scripts/compatibility.py page` of the results in tests/compatibility; each cell is a run of that",
        "part of the tests with the packages that this ComfyUI's requirements.txt pins, or with those the row names.",
        "What was not run is empty. No run of this table had a GPU: tests that need one are among the skipped; what ran on",
        "cards, and with which ComfyUI, is in [gpu_tests.txt](../benchmarks/results/gpu_tests.txt).",
        "",
        *_table(table),
        "",
        *(f"- {part}: {about}" for part, about in ABOUT.items()),
        "",
        "Any other ComfyUI: `python3 scripts/test.py --comfyui PATH` runs all of it there.",
        *_to_run(results),
        "",
        "## In detail",
        "",
    ]
    for key, row in ROWS.items():
        if results[key]:
            ordered = {part: results[key][part] for part in PARTS if part in results[key]}
            lines += _details(row, ordered)
    return "\n".join(lines).rstrip() + "\n"


def _run(args: argparse.Namespace) -> int:
    row = ROWS[args.row]
    if row.python and not platform.python_version().startswith(row.python + "."):
        raise SetupError(f"{args.row} is run by Python {row.python}: python{row.python} {' '.join(sys.argv)}")
    environment = ensure(args.comfyui, wanted=row.wanted)
    if (found := version_of(environment.comfyui)) != row.version:
        raise SetupError(
            f"{environment.comfyui} is ComfyUI {found}, {args.row} is {row.version}: give its folder by --comfyui"
        )
    code = 0
    file = args.results / f"{args.row}.json"
    args.results.mkdir(parents=True, exist_ok=True)
    for part in args.part or row.parts:
        pack = _state()
        kept = args.results / f"{args.row}-{part}-{pack}.jsonl"
        result = run(environment, part, args.deadline, kept, pack)
        stored = json.loads(file.read_text()) if file.is_file() else {}
        ordered = {name: (stored | {part: result})[name] for name in PARTS if name == part or name in stored}
        file.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")
        kept.unlink()
        say(f"{args.row}, {part}: {cell(result)}")
        code |= bool(result["failed"])
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="run parts of the tests on a row's environment and keep the result")
    running.add_argument("row", choices=ROWS)
    running.add_argument("part", nargs="*", help=f"of {', '.join(PARTS)}; else those that the row must have")
    running.add_argument("--comfyui", type=Path, help="the folder of that ComfyUI; 0.30.0 needs none")
    running.add_argument("--deadline", type=float, default=7200, help="seconds for one part (default: %(default)s)")
    running.add_argument("--results", type=Path, default=RESULTS, help="folder to keep them in")
    commands.add_parser("page", help=f"write {PAGE.relative_to(REPO)}")
    args = parser.parse_args()
    if args.command == "page":
        PAGE.write_text(page(read_results()))
        return 0
    if unknown := set(args.part) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: no part of the tests, which are {', '.join(PARTS)}")
    try:
        return _run(args)
    except SetupError as error:
        say(f"error: {error}")
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
