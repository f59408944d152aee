"""What the nodes that work on checkpoints share: progress, Cancel, a report as text. The work is done by hlwq_core."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comfy_api.latest import io, ui

from ..hlwq_core.tools.job import DONE
from . import compat, locations

NONE = "none"
CHECKPOINT_TIP = "A folder or file under models/hlwq, models/checkpoints or models/diffusion_models."
_STEPS = 1000


def new_checkpoint(name: str, layout: str) -> Path:
    """Where a new checkpoint of this name goes: directly under models/hlwq.

    Raises:
        InputError: the name is none for a folder.
    """
    bare = locations.plain_name(name, "checkpoint")
    folder = Path(compat.folder_paths.get_folder_paths("hlwq")[0])
    return folder / (f"{bare}.safetensors" if layout == "single" else bare)


def watched(node_id: str | None) -> Callable[[int, int, str], None]:
    """A progress callback for hlwq_core: the node's bar, a line with the time left, and ComfyUI's Cancel."""
    bar = compat.ProgressBar(_STEPS)
    started = time.monotonic()
    told = 0.0

    def progress(done: int, total: int, text: str) -> None:
        nonlocal told
        if text != DONE:  # else it is too late for this node, and the next one is to find that it was cancelled
            compat.model_management.throw_exception_if_processing_interrupted()
        now = time.monotonic()
        if now - told < 0.25 and done < total:
            return
        told = now
        bar.update_absolute(int(_STEPS * done / max(total, 1)), _STEPS)
        if node_id is not None and done >= total:
            _tell(f"{total / 1e9:.2f} GB done", node_id)
        elif node_id is not None and done:
            left = (now - started) * (total - done) / done
            _tell(f"{done / 1e9:.2f} of {total / 1e9:.2f} GB, {left:.0f} s left\n{text}", node_id)

    return progress


def _tell(text: str, node_id: str) -> None:
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_progress_text(text, node_id)


def report_output() -> Any:
    return io.String.Output(display_name="report", tooltip="The findings as text.")


class Tool:
    """What these nodes share: they run when queued alone, and anew each time, because files change.

    Not itself a ComfyNode: ComfyUI-Manager's scanner would list it.
    """

    hidden: Any

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> float:
        """Never the same: the answer depends on files, not on inputs."""
        return float("nan")

    @classmethod
    def validate_inputs(cls, checkpoint: str = "", original: str = NONE) -> bool | str:
        """Lists may be older than the folders: what is named counts, not what the list held."""
        return locations.refusal(
            (locations.checkpoint, checkpoint or None), (locations.dense_model, None if original == NONE else original)
        )

    @classmethod
    def _progress(cls) -> Callable[[int, int, str], None]:
        return watched(cls.hidden.unique_id if cls.hidden is not None else None)

    @classmethod
    def _said(cls, report: str) -> io.NodeOutput:
        return io.NodeOutput(report, ui=ui.PreviewText(report))
