"""What becomes of each test, written down as it ends: a run that is ended half-way goes on from there.

scripts/compatibility.py names the file in HLWQ_OUTCOMES; each line is a JSON object of test, state and why.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

REASON = 300  # characters of a failure or skip that are kept


class Outcomes:
    """A pytest plugin: leaves out the tests that the file has, and adds those that run.

    Args:
        file: JSON lines; made by the first test that ends.
    """

    def __init__(self, file: Path):
        self.file = file
        self.reports: dict[str, list[pytest.TestReport]] = {}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        lines = self.file.read_text("utf-8").splitlines() if self.file.is_file() else []
        done = {json.loads(line)["test"] for line in lines}
        before = [item for item in items if item.nodeid in done]
        if before:
            config.hook.pytest_deselected(items=before)
            items[:] = [item for item in items if item.nodeid not in done]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.setdefault(report.nodeid, []).append(report)
        if report.when == "teardown":
            self._write(report.nodeid, *_outcome(self.reports.pop(report.nodeid)))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        # A whole file may be skipped, or not be importable: that is one outcome.
        if report.skipped or report.failed:
            self._write(report.nodeid, "failed" if report.failed else "skipped", _why(report))

    def _write(self, test: str, state: str, why: str) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"test": test, "state": state, "why": why}) + "\n")


def _outcome(reports: list[pytest.TestReport]) -> tuple[str, str]:
    for report in reports:  # setup, call, teardown: the first that is not well
        if report.failed or report.skipped:
            return "failed" if report.failed else "skipped", _why(report)
    return "passed", ""


def _why(report: pytest.TestReport | pytest.CollectReport) -> str:
    text = report.longrepr
    if isinstance(text, tuple):  # file, line and reason of a skip
        text = text[2].removeprefix("Skipped: ")
    elif crash := getattr(text, "reprcrash", None):
        text = crash.message
    return " ".join(str(text or "").split())[:REASON]
