"""The node that says what a checkpoint is and whether it is whole."""

from __future__ import annotations

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..hlwq_core.tools.inspect import coverage_picture, inspect, table
from . import locations, tool


class HLWQInspect(tool.Tool, io.ComfyNode):
    """checkpoint -> report STRING, coverage IMAGE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HLWQInspect",
            display_name="HLWQ Inspect",
            category="HLWQ/tools",
            description="Says what a checkpoint is and whether it is whole, without loading it.",
            search_aliases=["hlwq", "what is in a checkpoint", "missing tensors"],
            inputs=[
                io.Combo.Input(
                    "checkpoint", options=list(locations.checkpoints(now=False)), tooltip=tool.CHECKPOINT_TIP
                )
            ],
            outputs=[
                tool.report_output(),
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
