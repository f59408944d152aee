"""The node that completes a checkpoint from the original."""

from __future__ import annotations

from comfy_api.latest import io

from ..hlwq_core.tools.repair import repair
from . import locations, tool


class HLWQRepair(tool.Tool, io.ComfyNode):
    """checkpoint, original -> new files in the checkpoint's folder; report STRING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HLWQRepair",
            display_name="HLWQ Repair",
            category="HLWQ/tools",
            description="Completes an incomplete checkpoint from the original, without touching what is there.",
            search_aliases=["hlwq", "complete a checkpoint", "missing tensors"],
            inputs=[
                io.Combo.Input(
                    "checkpoint", options=list(locations.checkpoints(now=False)), tooltip=tool.CHECKPOINT_TIP
                ),
                io.Combo.Input(
                    "original",
                    options=list(locations.dense_models(now=False)),
                    tooltip="The dense model that it was made from.",
                ),
            ],
            outputs=[tool.report_output()],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, checkpoint: str, original: str) -> io.NodeOutput:
        """Complete the checkpoint."""
        result = repair(locations.checkpoint(checkpoint), locations.dense_model(original), progress=cls._progress())
        return cls._said(result.text(original))
