"""The node that reads every layer of a checkpoint and checks it."""

from __future__ import annotations

from comfy_api.latest import io

from ..hlwq_core.tools.verify import verify
from . import locations, tool


class HLWQVerify(tool.Tool, io.ComfyNode):
    """checkpoint, original -> report STRING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HLWQVerify",
            display_name="HLWQ Verify",
            category="HLWQ/tools",
            description="Reads every layer of a checkpoint and checks it, if wanted against the original.",
            search_aliases=["hlwq", "checksum", "compare checkpoints"],
            inputs=[
                io.Combo.Input(
                    "checkpoint", options=list(locations.checkpoints(now=False)), tooltip=tool.CHECKPOINT_TIP
                ),
                io.Combo.Input(
                    "original",
                    options=[tool.NONE, *locations.dense_models(now=False)],
                    default=tool.NONE,
                    optional=True,
                    tooltip="The dense model that it was made from; then the error of each layer is measured.",
                ),
            ],
            outputs=[tool.report_output()],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, checkpoint: str, original: str = tool.NONE) -> io.NodeOutput:
        """Verify the checkpoint."""
        against = None if original == tool.NONE else locations.dense_model(original)
        result = verify(locations.checkpoint(checkpoint), against, progress=cls._progress())
        return cls._said(result.text())
