"""The node that gathers what `quantize` needs to know of a model's inputs, between loader and sampler."""

from __future__ import annotations

from comfy_api.latest import io

from ..hlwq_core.codec.options import MOMENTS
from . import compat, locations
from .calibrating import MARK, Gathering


class HLWQCalibrate(io.ComfyNode):
    """model -> the same model, which is watched while it samples."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="HLWQCalibrate",
            display_name="HLWQ Calibrate",
            category="HLWQ/tools",
            description="Stands between a model's loader and its sampler, and gathers what the inputs of its layers look like "
            "while you sample a few prompts. HLWQ Quantize makes a better checkpoint of the same size from that.",
            search_aliases=["hlwq", "imatrix", "importance matrix", "gptq", "moments"],
            inputs=[
                io.Model.Input("model", tooltip="The model to watch: dense or HLWQ, before or after its LoRAs."),
                io.String.Input(
                    "name",
                    default="calibration",
                    tooltip="Name of the file under models/hlwq/calibration. What it holds already is gone on with.",
                ),
                io.Combo.Input(
                    "moments",
                    options=list(MOMENTS),
                    default="blocks",
                    tooltip="blocks: what the codes of blocks of 128 need. full: better, for layers as wide as memory (GB) "
                    "allows. none: means alone, for the correction of biases.",
                ),
                io.Float.Input(
                    "memory_gb",
                    default=4.0,
                    min=0.0,
                    max=1024.0,
                    step=0.5,
                    tooltip="Memory of the host for full moments, narrow layers first; the others get blocks.",
                    advanced=True,
                ),
            ],
            outputs=[io.Model.Output(display_name="MODEL", tooltip="The same model; sampling with it fills the file.")],
        )

    @classmethod
    def validate_inputs(cls, name: str) -> bool | str:
        """Say before anything runs that the name is none for a file."""
        if reason := compat.why_not(compat.Feature.CALIBRATING):
            return reason
        return locations.refusal((locations.new_calibration, name))

    @classmethod
    def execute(cls, model: object, name: str, moments: str, memory_gb: float) -> io.NodeOutput:
        """Watch a clone of the model."""
        gathering = Gathering(locations.new_calibration(name), moments, int(memory_gb * 1e9))
        return io.NodeOutput(compat.around_sampling(model, "hlwq_calibrate", gathering, MARK))
