"""What a loader gives for a part that its checkpoint does not hold: it says so when something uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from ..hlwq_core.errors import IncompleteError


class AbsentError(IncompleteError, AttributeError):
    """A part is not in the checkpoint. As an AttributeError it lets ComfyUI ask what a value is (its caches do)."""


def no_part(path: Path, part: str, instead: str) -> AbsentError:
    """The error: which part, of which checkpoint, and what to use for it."""
    return AbsentError(
        f"this checkpoint holds no {part}: use {instead}",
        file=path,
        expected=f"a {part} connected from another loader",
        found=f"an output without a {part}",
        fix=f"put {instead} in the place of this output, with the model's own file",
    )


class AbsentPart:
    """Stands for a part that is not there: any use of it raises, by the name of the part.

    Args:
        path: the checkpoint.
        part: as users are told.
        instead: the node or file to use.
    """

    def __init__(self, path: Path, part: str, instead: str):
        self._absent = (path, part, instead)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):  # asked by Python and by whoever copies or shows values, not a use
            raise AttributeError(name)
        raise no_part(*self._absent)


def connected(prompt: dict[str, Any] | None, node_id: str, checkpoint: str, output: int) -> bool:
    """Whether an output of a loader of this checkpoint goes anywhere in a prompt.

    By class and choice, not by the node's own id: a node that asks for its id is not shared between workflows, and each
    would load the model again.

    Args:
        prompt: as ComfyUI runs it, node ids to `class_type` and `inputs`.
        node_id: of the loader's schema.
        checkpoint: its label.
        output: which output.
    """
    nodes = prompt or {}
    loaders = {
        key
        for key, node in nodes.items()
        if node.get("class_type") == node_id and node.get("inputs", {}).get("checkpoint") == checkpoint
    }
    links = (value for node in nodes.values() for value in node.get("inputs", {}).values())
    return any(isinstance(link, list) and len(link) == 2 and link[0] in loaders and link[1] == output for link in links)
