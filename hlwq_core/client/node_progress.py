"""Progress of a prompt in the terminal: a bar a node, or a line a node where there is no terminal."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any, TextIO

from tqdm import tqdm

from .graph import Nodes, name_of


class NodeProgress:
    """Shows the messages of `Client.follow`; use it as `with NodeProgress(workflow) as watch`.

    Args:
        stream: where it is written; bars on a terminal, otherwise a line for every node that has ended.
        quiet: show nothing, only keep the times.
    """

    def __init__(self, workflow: Nodes, stream: TextIO | None = None, quiet: bool = False):
        self.workflow = workflow
        self.stream = stream or sys.stderr
        self.quiet = quiet
        self.bars = not quiet and self.stream.isatty()
        # Some terminals say that they have 0 columns and lines; tqdm itself would then show nothing.
        self.width, self.height = shutil.get_terminal_size((100, 24))
        self.total = len(workflow)
        self.seconds: dict[str, float] = {}
        self._begun: dict[str, float] = {}
        self._open: dict[str, tqdm[Any]] = {}
        self._done: set[str] = set()

    def __enter__(self) -> NodeProgress:
        return self

    def __exit__(self, *_: object) -> None:
        for bar in self._open.values():
            bar.close()
        self._open.clear()

    def __call__(self, kind: str, data: dict[str, Any]) -> None:
        if kind == "execution_cached":
            cached = [n for n in data.get("nodes", []) if n in self.workflow]
            self._done.update(cached)
            if cached and not self.quiet:
                self._line(f"{len(cached)} of {self.total} nodes are as in an earlier run and are not run again")
        elif kind == "executing" and data.get("node") is not None:
            self._start(str(data.get("display_node") or data["node"]))
        elif kind == "progress_state":
            for node_id, state in (data.get("nodes") or {}).items():
                # Nodes that a node expands into show under the one that stands in the workflow.
                shown = str(state.get("display_node_id") or node_id)
                self._start(shown)
                if node_id == shown and shown in self._begun:
                    self._move(shown, state.get("value") or 0, state.get("max") or 1)
                    if state.get("state") == "finished":
                        self._end(shown)

    def _start(self, node_id: str) -> None:
        if node_id in self._begun or node_id in self._done or node_id not in self.workflow:
            return
        self._begun[node_id] = time.monotonic()
        if self.bars:
            self._open[node_id] = tqdm(
                desc=self._label(node_id, len(self._done) + len(self._open) + 1),
                total=1,
                file=self.stream,
                bar_format="{desc} {bar:24} {n_fmt}/{total_fmt} {elapsed}",
                ncols=self.width,
                nrows=self.height,
            )

    def _move(self, node_id: str, value: float, most: float) -> None:
        if bar := self._open.get(node_id):
            bar.total = most
            bar.update(value - bar.n)
            bar.refresh()

    def _end(self, node_id: str) -> None:
        self._done.add(node_id)
        self.seconds[node_id] = time.monotonic() - self._begun.pop(node_id)
        if bar := self._open.pop(node_id, None):
            bar.update(bar.total - bar.n)
            bar.close()
        elif not self.quiet:
            self._line(f"{self._label(node_id, len(self._done))} {self.seconds[node_id]:6.1f} s")

    def _label(self, node_id: str, number: int) -> str:
        return f"[{number:2d}/{self.total}] {name_of(self.workflow, node_id)[:32]:32}"

    def _line(self, text: str) -> None:
        if self.bars:
            tqdm.write(text, file=self.stream)
        else:
            print(text, file=self.stream, flush=True)
