"""Load Upscaler: a latent upscaler of LTX, spatial or temporal, from a checkpoint's `upscalers/` or the model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io

from ..hlwq_core.errors import ConfigError, FormatError, InputError
from ..hlwq_core.format.bounded import parse_object
from ..hlwq_core.format.safefile import SafeFile
from . import compat, locations
from .model_loading import refuse_differences

MARKS = ("initial_conv.weight", "post_upsample_res_blocks.0.conv1.weight", "final_conv.weight")
_MOST_BLOCKS = 64  # a stage; the published ones have 4
# Output channels of the upsampling convolution for each input channel → what it doubles.
_FACTORS = {4: (True, False), 2: (False, True), 8: (True, True)}


def config_from_shapes(shapes: dict[str, tuple[int, ...]], file: Path | None = None) -> dict[str, Any]:
    """The config of a latent upscaler, read off its tensors' shapes (files of HLWQ folders carry none).

    Raises:
        FormatError: it is an upscaler of no known kind.
    """
    initial, later = shapes[MARKS[0]], shapes[MARKS[1]]
    rational = "upsampler.conv.weight" in shapes
    upsampling = shapes.get("upsampler.conv.weight" if rational else "upsampler.0.weight", (0, 1))
    factor = upsampling[0] // upsampling[1] if len(upsampling) > 1 and upsampling[1] else 0
    scales = {4: 2.0, 9: 1.5, 16: 4.0}
    blocks = len({name.split(".")[1] for name in shapes if name.startswith("res_blocks.")})
    # The model is built of these numbers: what the file itself holds of them bounds it.
    sized = len(initial) in (4, 5) and 0 not in initial and later == (initial[0], initial[0], *initial[2:])
    if not sized or blocks > _MOST_BLOCKS:
        raise FormatError(
            "an upscaler whose tensors do not fit each other",
            file=file,
            tensor=MARKS[1],
            expected=f"[channels, channels, kernel …] as {MARKS[0]} has them, and at most {_MOST_BLOCKS} blocks a stage",
            found=f"{list(later)} with {list(initial)}, {blocks} blocks",
            fix="download the upscaler again",
        )
    if (rational and factor not in scales) or (not rational and factor not in _FACTORS):
        raise FormatError(
            "an upscaler of no known kind",
            file=file,
            tensor="upsampler",
            expected="2 (temporal), 4 (spatial) or 8 (both) output channels an input channel",
            found=list(upsampling),
            fix="use the upscalers of LTX-2.3: ltx-2.3-spatial-upscaler-x2-1.1, ltx-2.3-temporal-upscaler-x2-1.0",
        )
    spatial, temporal = (True, False) if rational else _FACTORS[factor]
    return {
        "in_channels": initial[1],
        "mid_channels": initial[0],
        "num_blocks_per_stage": blocks,
        "dims": len(initial) - 2,
        "spatial_upsample": spatial,
        "temporal_upsample": temporal,
        "spatial_scale": scales[factor] if rational else 2.0,
        "rational_resampler": rational,
    }


def load_upscaler(path: Path) -> Any:
    """A latent upscaler as core's LatentUpscaleModelLoader gives it.

    Raises:
        FormatError, InputError: the file is corrupt, or holds something else.
        ConfigError: its config contradicts its tensors.
        IncompleteError: tensors are missing.
    """
    compat.require(compat.Feature.UPSCALERS)
    file = SafeFile(path)
    shapes = {name: entry.shape for name, entry in file.entries.items()}
    if not all(name in shapes for name in MARKS):
        raise InputError(
            "this file is no latent upscaler of LTX",
            file=path,
            tensor=next(name for name in MARKS if name not in shapes),
            expected="an upscaler as in the checkpoint's upscalers/ folder",
            found=f"{len(shapes)} other tensors, as {next(iter(shapes), 'none')}",
            fix="choose ltx-2.3-spatial-upscaler-x2-1.1 or ltx-2.3-temporal-upscaler-x2-1.0",
        )
    config = config_from_shapes(shapes, path)
    if "config" in file.metadata:
        noted = parse_object(file.metadata["config"], "the upscaler's config", path, ConfigError)
        stated = {key: value for key, value in noted.items() if key in config}
        wrong = [key for key, value in stated.items() if value != config[key]]
        if wrong:
            raise ConfigError(
                "the upscaler's config contradicts its tensors",
                file=path,
                tensor=wrong[0],
                expected=f"{wrong[0]} = {stated[wrong[0]]}, by the file's metadata",
                found=config[wrong[0]],
                fix="download the upscaler again",
            )
    model = compat.LatentUpsampler.from_config(config, operations=compat.disable_weight_init)
    refuse_differences(path, "the upscaler", model.state_dict(), shapes)
    for name, value in model.state_dict().items():
        if tuple(value.shape) != shapes[name]:
            raise FormatError(
                "a tensor of the upscaler has another shape than the others ask for",
                file=path,
                tensor=name,
                expected=list(value.shape),
                found=list(shapes[name]),
                fix="download the upscaler again",
            )
    management = compat.model_management
    model = model.to(dtype=management.vae_dtype(allowed_dtypes=[torch.bfloat16, torch.float32])).eval()
    management.archive_model_dtypes(model)
    patcher = compat.core_patcher_class()(
        model, load_device=management.get_torch_device(), offload_device=management.unet_offload_device()
    )
    model.load_state_dict({name: file.tensor(name) for name in shapes}, assign=patcher.is_dynamic())
    return patcher


class HLWQLoadUpscaler(io.ComfyNode):
    """A latent upscaler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="HLWQLoadUpscaler",
            display_name="HLWQ Load Upscaler",
            category="HLWQ/loaders",
            description="Loads a spatial or temporal latent upscaler: those in the checkpoint's own upscalers folder, and "
            "those in models/latent_upscale_models. Supplies the config that files of HLWQ checkpoints lack.",
            search_aliases=["hlwq", "ltx", "latent upscale model", "spatial upscaler", "temporal upscaler"],
            inputs=[
                io.Combo.Input(
                    "upscaler",
                    options=list(locations.upscalers(now=False)),
                    tooltip="The spatial one doubles width and height, the temporal one the number of frames.",
                ),
            ],
            outputs=[io.LatentUpscaleModel.Output(display_name="LATENT_UPSCALE_MODEL")],
        )

    @classmethod
    def validate_inputs(cls, upscaler: str) -> bool | str:
        """Say before anything runs that an upscaler is not there, and which are."""
        return compat.why_not(compat.Feature.UPSCALERS) or locations.refusal((locations.upscaler, upscaler))

    @classmethod
    def execute(cls, upscaler: str) -> io.NodeOutput:
        """Load the upscaler."""
        return io.NodeOutput(load_upscaler(locations.upscaler(upscaler)))
