"""The node that makes a checkpoint from a dense model."""

from __future__ import annotations

from comfy_api.latest import io

from ..hlwq_core.codec.options import LAYOUTS, NORMS
from ..hlwq_core.format.sizes import BITS
from ..hlwq_core.models.recipes import AUTO, recipe_names
from ..hlwq_core.tools.quantize import quantize
from . import locations, tool


class HLWQQuantize(tool.Tool, io.ComfyNode):
    """source -> a new checkpoint under models/hlwq; report STRING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HLWQQuantize",
            display_name="HLWQ Quantize",
            category="HLWQ/tools",
            description="Makes an HLWQ checkpoint from a model in safetensors, layer by layer. A run that was cancelled "
            "goes on where it was when it is queued again.",
            search_aliases=["hlwq", "polarquant", "make q5", "compress model"],
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
                io.Combo.Input(
                    "calibration",
                    options=[tool.NONE, *locations.calibrations(now=False)],
                    default=tool.NONE,
                    optional=True,
                    tooltip="What HLWQ Calibrate gathered of this model: codes for the least error of the outputs, and corrected "
                    "biases.",
                ),
                io.Float.Input(
                    "max_error",
                    default=0.0,
                    min=0.0,
                    max=0.5,
                    step=0.0001,
                    round=False,
                    optional=True,
                    advanced=True,
                    tooltip="Above 0: each layer gets the fewest bits at which its relative squared error is at most this; "
                    "2e-3 is what 5 bits have without block means.",
                ),
                io.Float.Input(
                    "mean_bits",
                    default=0.0,
                    min=0.0,
                    max=8.0,
                    step=0.1,
                    optional=True,
                    advanced=True,
                    tooltip="Above 0: layers get bits by what they matter in the calibration, so many a weight in the mean.",
                ),
            ],
            outputs=[tool.report_output()],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(  # type: ignore[override]
        cls, source: str, name: str, layout: str, calibration: str = tool.NONE
    ) -> bool | str:
        """Say before anything runs that there is no such source, or that the name is none."""
        return locations.refusal(
            (locations.dense_model, source),
            (lambda given: tool.new_checkpoint(given, layout), name),
            (locations.calibration, None if calibration == tool.NONE else calibration),
        )

    @classmethod
    def execute(
        cls,
        source: str,
        name: str,
        bits: str,
        norms: str,
        rules: str,
        layout: str,
        calibration: str = tool.NONE,
        max_error: float = 0.0,
        mean_bits: float = 0.0,
    ) -> io.NodeOutput:
        """Quantize the model."""
        report = quantize(
            locations.dense_model(source),
            tool.new_checkpoint(name, layout),
            bits=int(bits),
            norms=norms,
            rules=rules,
            layout=layout,
            calibration=None if calibration == tool.NONE else locations.calibration(calibration),
            max_error=max_error or None,
            mean_bits=mean_bits or None,
            progress=cls._progress(),
        )
        return cls._said(report.text())
