"""The node that makes a checkpoint from a dense model."""

from __future__ import annotations

from comfy_api.latest import io

from ..hlwq_core.format.packing import BITS
from ..hlwq_core.models.recipes import AUTO, recipe_names
from ..hlwq_core.tools.quantize import LAYOUTS, NORMS, quantize
from . import locations, tool


class HLWQQuantize(tool.Tool, io.ComfyNode):
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
                io.Combo.Input(
                    "source", options=list(locations.dense_models(now=False)), tooltip="The dense model to quantize."
                ),
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
            outputs=[tool.report_output()],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, source: str, name: str, layout: str) -> bool | str:  # type: ignore[override]
        """Say before anything runs that there is no such source, or that the name is none."""
        return locations.refusal(
            (locations.dense_model, source), (lambda given: tool.new_checkpoint(given, layout), name)
        )

    @classmethod
    def execute(cls, source: str, name: str, bits: str, norms: str, rules: str, layout: str) -> io.NodeOutput:
        """Quantize the model."""
        report = quantize(
            locations.dense_model(source),
            tool.new_checkpoint(name, layout),
            bits=int(bits),
            norms=norms,
            rules=rules,
            layout=layout,
            progress=cls._progress(),
        )
        return cls._said(report.text())
