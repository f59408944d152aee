"""The life of a checkpoint as nodes: inspect, verify, quantize, repair, download. The work is done by hlwq_core."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..hlwq_core.commands.repair import text as repair_text
from ..hlwq_core.commands.verify import text as verification_text
from ..hlwq_core.errors import InputError
from ..hlwq_core.format.packing import BITS
from ..hlwq_core.models import families
from ..hlwq_core.models.recipes import AUTO, recipe_names
from ..hlwq_core.tools.download import download
from ..hlwq_core.tools.inspect import coverage_picture, inspect, table
from ..hlwq_core.tools.quantize import LAYOUTS, NORMS, contents_text, quantize
from ..hlwq_core.tools.repair import repair
from ..hlwq_core.tools.verify import verify
from . import compat, locations
from .locations import dense_model, dense_models

NONE = "none"
_STEPS = 1000
_CHECKPOINT_TIP = "A folder or file under models/hlwq, models/checkpoints or models/diffusion_models."


def new_checkpoint(name: str, layout: str) -> Path:
    """Where a new checkpoint of this name goes: directly under models/hlwq.

    Raises:
        InputError: the name is none for a folder.
    """
    bare = name.strip().removesuffix(".safetensors")
    if not re.fullmatch(r"[\w][\w.+ -]*", bare) or bare.endswith("."):
        raise InputError(
            "this is no name for a checkpoint",
            expected="letters, digits, spaces and . + - _",
            found=repr(name),
            fix="give a name without folders; the checkpoint will lie under models/hlwq",
        )
    folder = Path(compat.folder_paths.get_folder_paths("hlwq")[0])
    return folder / (f"{bare}.safetensors" if layout == "single" else bare)


def watched(node_id: str | None) -> Callable[[int, int, str], None]:
    """A progress callback for hlwq_core: the node's bar, a line with the time left, and ComfyUI's Cancel."""
    bar = compat.ProgressBar(_STEPS)
    started = time.monotonic()
    told = 0.0

    def progress(done: int, total: int, text: str) -> None:
        nonlocal told
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


def _report_output() -> Any:
    return io.String.Output(display_name="report", tooltip="The findings as text.")


class _Tool:
    """What the five nodes share: they run when queued alone, and anew each time, because files change.

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
            (locations.checkpoint, checkpoint or None), (dense_model, None if original == NONE else original)
        )

    @classmethod
    def _progress(cls) -> Callable[[int, int, str], None]:
        return watched(cls.hidden.unique_id if cls.hidden is not None else None)

    @classmethod
    def _said(cls, report: str) -> io.NodeOutput:
        return io.NodeOutput(report, ui=ui.PreviewText(report))


class HLWQInspect(_Tool, io.ComfyNode):
    """checkpoint -> report STRING, coverage IMAGE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HLWQInspect",
            display_name="HLWQ Inspect",
            category="HLWQ",
            description="Says what a checkpoint is and whether it is whole, without loading it.",
            inputs=[
                io.Combo.Input("checkpoint", options=list(locations.checkpoints(now=False)), tooltip=_CHECKPOINT_TIP)
            ],
            outputs=[
                _report_output(),
                io.Image.Output(display_name="coverage", tooltip="A column for each block, a row for each layer."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, checkpoint: str) -> io.NodeOutput:
        """Inspect the checkpoint and draw its coverage."""
        found = inspect(locations.checkpoint(checkpoint))
        pixels = np.asarray(coverage_picture(found), dtype=np.float32) / 255
        image = torch.from_numpy(pixels)[None]
        report = table(found)
        return io.NodeOutput(report, image, ui={**ui.PreviewImage(image, cls=cls).as_dict(), "text": (report,)})


class HLWQVerify(_Tool, io.ComfyNode):
    """checkpoint, original -> report STRING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HLWQVerify",
            display_name="HLWQ Verify",
            category="HLWQ",
            description="Reads every layer of a checkpoint and checks it, if wanted against the original.",
            inputs=[
                io.Combo.Input("checkpoint", options=list(locations.checkpoints(now=False)), tooltip=_CHECKPOINT_TIP),
                io.Combo.Input(
                    "original",
                    options=[NONE, *dense_models(now=False)],
                    default=NONE,
                    optional=True,
                    tooltip="The dense model that it was made from; then the error of each layer is measured.",
                ),
            ],
            outputs=[_report_output()],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, checkpoint: str, original: str = NONE) -> io.NodeOutput:
        """Verify the checkpoint."""
        against = None if original == NONE else dense_model(original)
        result = verify(locations.checkpoint(checkpoint), against, progress=cls._progress())
        return cls._said(verification_text(result))


class HLWQQuantize(_Tool, io.ComfyNode):
    """source -> a new checkpoint under models/hlwq; report STRING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HLWQQuantize",
            display_name="HLWQ Quantize",
            category="HLWQ",
            description="Makes an HLWQ checkpoint from a model in safetensors, layer by layer. A run that was cancelled "
            "goes on where it was when it is queued again.",
            inputs=[
                io.Combo.Input("source", options=list(dense_models(now=False)), tooltip="The dense model to quantize."),
                io.String.Input(
                    "name", default="my-model-HLWQ-Q5", tooltip="Name of the new checkpoint under models/hlwq."
                ),
                io.Combo.Input(
                    "bits",
                    options=[str(bits) for bits in BITS],
                    default="5",
                    tooltip="Bits a code; each block of 128 weights adds a norm of 16 bits.",
                ),
                io.Combo.Input(
                    "norms",
                    options=list(reversed(NORMS)),
                    default="search",
                    tooltip="search: a third less error in the same size. author: as the published files, faster.",
                ),
                io.Combo.Input(
                    "rules",
                    options=[AUTO, *recipe_names()],
                    default=AUTO,
                    tooltip="Which layers are packed; auto takes the model's own recipe, see the help page.",
                ),
                io.Combo.Input(
                    "layout",
                    options=list(LAYOUTS),
                    default="published",
                    tooltip="published: the folder that the author's tools read. single: one file with the model's config.",
                ),
            ],
            outputs=[_report_output()],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, source: str, name: str, layout: str) -> bool | str:  # type: ignore[override]
        """Say before anything runs that there is no such source, or that the name is none."""
        return locations.refusal((dense_model, source), (lambda given: new_checkpoint(given, layout), name))

    @classmethod
    def execute(cls, source: str, name: str, bits: str, norms: str, rules: str, layout: str) -> io.NodeOutput:
        """Quantize the model."""
        report = quantize(
            dense_model(source),
            new_checkpoint(name, layout),
            bits=int(bits),
            norms=norms,
            rules=rules,
            layout=layout,
            progress=cls._progress(),
        )
        return cls._said(
            f"{report.target}\n{report.layers} layers quantized ({report.bits_a_weight:.3f} bits a weight), "
            f"{report.kept} tensors kept, {(report.bytes_codes + report.bytes_kept) / 1e9:.3f} GB\n"
            f"cosine {report.cosine:.5f}, relative squared error {report.relative_error:.3e}\n{contents_text(report)}".rstrip()
        )


class HLWQRepair(_Tool, io.ComfyNode):
    """checkpoint, original -> new files in the checkpoint's folder; report STRING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HLWQRepair",
            display_name="HLWQ Repair",
            category="HLWQ",
            description="Completes an incomplete checkpoint from the original, without touching what is there.",
            inputs=[
                io.Combo.Input("checkpoint", options=list(locations.checkpoints(now=False)), tooltip=_CHECKPOINT_TIP),
                io.Combo.Input(
                    "original", options=list(dense_models(now=False)), tooltip="The dense model that it was made from."
                ),
            ],
            outputs=[_report_output()],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, checkpoint: str, original: str) -> io.NodeOutput:
        """Complete the checkpoint."""
        result = repair(locations.checkpoint(checkpoint), dense_model(original), progress=cls._progress())
        return cls._said(repair_text(result, original))


class HLWQDownload(_Tool, io.ComfyNode):
    """repository -> models/hlwq/NAME; report STRING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HLWQDownload",
            display_name="HLWQ Download",
            category="HLWQ",
            description="Fetches a published checkpoint from Hugging Face into models/hlwq. Runs only when it is queued.",
            inputs=[
                io.Combo.Input(
                    "repository",
                    options=list(families.repositories()),
                    tooltip="The repository, under its present (HLWQ) or its former (PolarQuant) name.",
                )
            ],
            outputs=[_report_output()],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, repository: str) -> io.NodeOutput:
        """Fetch the checkpoint."""
        result = download(repository, new_checkpoint(repository.split("/")[1], "published"), progress=cls._progress())
        return cls._said(
            f"{result.repository} → {result.folder}\n{len(result.fetched)} files fetched, {len(result.present)} were there, "
            f"{result.nbytes / 1e9:.2f} GB in all. Press R, then choose it in HLWQ Load Checkpoint."
            + (f"\n{result.note()}" if result.note() else "")
        )
