"""Several GPUs: one video computed by several cards, each with a part of its tokens."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from comfy_api.latest import io

from ..hlwq_core.errors import UnsupportedError
from . import compat, model_loading
from .parallel import cards, worker, wrapper
from .running.choices import Choices

_log = logging.getLogger("hlwq")


def run_worker(given: dict[str, Any], output: int) -> None:
    """The process of one more card; see `compat/boot.py` and `parallel/worker.py`."""

    def load() -> Any:
        chosen = Choices(**given["choices"])
        return model_loading.reload_diffusion_model(given["path"], chosen, given["disable_dynamic"])

    worker.run(given, output, load)


def on_several(model: Any, text: str) -> tuple[Any, str]:
    """A model whose sampling runs are computed by several cards.

    Args:
        model: patcher of an HLWQ model.
        text: the cards, as `cards.choose` takes them.

    Returns:
        Another patcher of the same model, and a report.

    Raises:
        InputError, UnsupportedError: these cards, or this model, cannot do it.
    """
    compat.require(compat.Feature.SEVERAL_GPUS)
    load, *arguments = model.cached_patcher_init or (None,)
    if load is not model_loading.reload_diffusion_model or not compat.blocks_can_be_split(model.model.diffusion_model):
        raise UnsupportedError(
            "only LTX models of HLWQ's loaders are computed by several cards",
            expected="a model of HLWQ Load Checkpoint or HLWQ Load Diffusion Model, LTX-2 or later",
            found=f"{type(model.model).__name__}, loaded by {compat.defined_in(load) if load else 'another node'}",
            fix="connect HLWQ's loader, or take HLWQ Several GPUs out of the workflow",
        )
    chosen_cards = cards.choose(text, model.load_device)
    made = model.clone()
    lines = [f"HLWQ Several GPUs: {', '.join(map(str, chosen_cards))}", *cards.remarks(chosen_cards)]
    if len(chosen_cards) > 1:
        (path, choices), *_ = arguments
        given = {
            "run": "nodes.several_gpus",
            "path": path,
            "choices": dataclasses.asdict(choices),
            "disable_dynamic": not model.is_dynamic(),
        }
        several = wrapper.SamplesOnSeveral(chosen_cards, given)
        wrapper.hang_in(made, several)
        several.start(made.model)
    report = "\n  ".join(lines)
    _log.info("%s", report)
    return made, report


class HLWQSeveralGPUs(io.ComfyNode):
    """A model that several cards compute together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="HLWQSeveralGPUs",
            display_name="HLWQ Several GPUs",
            category="HLWQ/model",
            description="Computes one video on several NVIDIA cards of this machine: each has the packed model and a part of the "
            "video's tokens. Stands behind the loader; samplers, guiders and LoRA nodes stay as they are.",
            search_aliases=["multi gpu", "multigpu", "two gpus", "sequence parallel", "ulysses", "faster"],
            inputs=[
                io.Model.Input("model", tooltip="Of HLWQ Load Checkpoint or HLWQ Load Diffusion Model."),
                io.String.Input(
                    "cards",
                    default=cards.ALL,
                    tooltip='"all", or numbers of cards as ComfyUI sees them, as "0,1". The one that ComfyUI samples on is '
                    "always among them.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The same model, sampled on these cards."),
                io.String.Output(display_name="report", tooltip="Which cards, and what is to be said of them."),
            ],
        )

    @classmethod
    def validate_inputs(cls, cards: str) -> bool | str:
        """Say before anything runs what this ComfyUI lacks."""
        return compat.why_not(compat.Feature.SEVERAL_GPUS) or True

    @classmethod
    def execute(cls, model: Any, cards: str) -> io.NodeOutput:
        """Hang the cards in."""
        return io.NodeOutput(*on_several(model, cards))
