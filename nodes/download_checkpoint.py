"""The node that fetches a published checkpoint."""

from __future__ import annotations

from comfy_api.latest import io

from ..hlwq_core.models import families
from ..hlwq_core.tools.download import download
from . import tool


class HLWQDownload(tool.Tool, io.ComfyNode):
    """repository -> models/hlwq/NAME; report STRING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HLWQDownload",
            display_name="HLWQ Download",
            category="HLWQ/tools",
            description="Fetches a published checkpoint from Hugging Face into models/hlwq. Runs only when it is queued.",
            search_aliases=["hlwq", "hugging face", "get ltx"],
            inputs=[
                io.Combo.Input(
                    "repository",
                    options=list(families.repositories()),
                    tooltip="The repository, under its present (HLWQ) or its former (PolarQuant) name.",
                )
            ],
            outputs=[tool.report_output()],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, repository: str) -> io.NodeOutput:
        """Fetch the checkpoint."""
        folder = tool.new_checkpoint(repository.split("/")[1], "published")
        result = download(repository, folder, progress=cls._progress())
        return cls._said(f"{result.text()}\nPress R, then choose it in HLWQ Load Checkpoint.")
