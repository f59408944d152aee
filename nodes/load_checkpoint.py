"""Load Checkpoint: MODEL, VAE and audio VAE from an HLWQ folder or file, the diffusion model's weights packed."""

from __future__ import annotations

import logging
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..hlwq_core import backends
from ..hlwq_core.models import ltx
from . import compat, locations, model_loading, still_used
from .absent import AbsentPart, connected, no_part
from .loader_inputs import decoding_inputs
from .running import faster_attention, recorded_blocks
from .running.choices import DEFAULT, FAST, Choices

_log = logging.getLogger("hlwq")

LOAD_VAE = "Load VAE"
# The outputs of parts that a checkpoint may leave to files of their own.
OUTPUTS = {1: ltx.VIDEO_VAE, 2: ltx.AUDIO_VAE}


def load_checkpoint(
    path: Path,
    chosen: Choices = DEFAULT,
    used: Collection[str] = (),
    vaes: bool = True,
    share: bool = False,
) -> tuple[Any, Any | None, Any | None, str]:
    """Load everything that a checkpoint holds of a video model.

    Args:
        path: folder or file of the checkpoint.
        chosen: how it is read, decoded and run.
        used: parts that somebody waits for: `video VAE`, `audio VAE`.
        vaes: also load the VAEs.
        share: a diffusion model of these files that is in use may be taken again, to be run as `chosen` says.

    Returns:
        Diffusion model, VAE and audio VAE as ComfyUI's own loaders give them (None where the checkpoint has none), and a
        report.

    Raises:
        HLWQError: nothing was loaded; the message says why and what to do.
    """
    compat.require(compat.Feature.LOADING)
    device = compat.model_management.get_torch_device()
    backend = backends.choose(device, chosen.backend)
    opened = model_loading.open_complete(path, chosen.version, chosen.order)
    for part in opened.whole.absent:
        if part.name in used:
            raise no_part(path, part.name, part.instead)
    bar = compat.ProgressBar(len(opened.names))

    def step() -> None:
        bar.update(1)

    # The small parts first: what is wrong with them shows before the large one is built.
    vae = audio_vae = None
    vae_prefixes = {"vae.": ""}
    if vaes and opened.config is not None:
        read_as = (chosen.version, chosen.order)
        vae = still_used.vae(
            path, ltx.VIDEO_VAE, read_as, lambda: model_loading.vae(opened, vae_prefixes, ltx.VIDEO_VAE, step)
        )
        audio = model_loading.AUDIO_PREFIXES
        audio_vae = still_used.vae(
            path, ltx.AUDIO_VAE, read_as, lambda: model_loading.vae(opened, audio, ltx.AUDIO_VAE, step)
        )
    load = partial(model_loading.diffusion_model, opened, chosen, step=step)
    model, in_use = still_used.diffusion_model(path, chosen, load) if share else (load(), False)
    model.cached_patcher_init = (model_loading.reload_diffusion_model, (str(path), chosen))
    if vaes and opened.config is None:
        vae_prefixes = dict.fromkeys(model.model.model_config.vae_key_prefix, "")
        vae = model_loading.vae(opened, vae_prefixes, "VAE", step)
        for part_name, loaded in ((ltx.VIDEO_VAE, vae), (ltx.AUDIO_VAE, audio_vae)):
            if loaded is None and part_name in used:
                raise no_part(path, part_name, LOAD_VAE)
    for name, prefixes, patcher in (
        ("VAE", vae_prefixes, getattr(vae, "patcher", None)),
        ("audio VAE", model_loading.AUDIO_PREFIXES, getattr(audio_vae, "patcher", None)),
    ):
        if patcher is not None:
            patcher.cached_patcher_init = (
                model_loading.reload_vae,
                (str(path), chosen.version, chosen.order, tuple(prefixes.items()), name),
            )
    bar.update_absolute(len(opened.names))
    report = describe(opened, model, backend.name, device, chosen)
    if in_use:
        report += "\n  in memory already: no weight was read again"
    _log.info("%s", report)
    return model, vae, audio_vae, report


def describe(opened: model_loading.Opened, model: Any, backend: str, device: Any, chosen: Choices) -> str:
    """The report: what was loaded, how it is decoded, how much memory it takes."""
    facts = opened.checkpoint.report()
    bits = ", ".join(f"{count} of {bits} bits" for bits, count in facts["bits"].items())
    read = f"{', '.join(facts['packings'])}, codebook {', '.join(facts['codebooks'])}"
    if assumed := facts["assumed"]:
        read += f"; {' and '.join(assumed)} {'are' if len(assumed) > 1 else 'is'} assumed"
    reasons = [
        f"  {name} not used: {reason}"
        for name, reason in backends.unavailable_reasons(device).items()
        if reason is not None
    ]
    lines = [
        f"HLWQ {opened.checkpoint.path.name}: {model.model.__class__.__name__}",
        f"  {facts['quantized']} packed tensors ({bits}; {', '.join(facts['variants'])}; {read}), "
        f"{facts['plain']} plain ones, {facts['files']} files",
        f"  diffusion model {model.model_size() / 2**30:.2f} GiB, {facts['bits_a_weight']:.3f} bits a packed weight",
        f"  config: {opened.config.source if opened.config else 'read from the tensors by ComfyUI'}",
        f"  decoded on {device} by the backend {backend}",
        *reasons,
    ]
    kind = None
    if chosen.mode == FAST:
        kind, reason = backends.choose_fast(device)
        lines.append(f"  fast mode: {f'{kind} products' if kind else f'not available, decoded exactly: {reason}'}")
    weights = "" if kind else "weights exact, "
    lines.append(f"  {weights}attention {faster_attention.choose(chosen.attention, device).words}")
    if chosen.record_blocks and hasattr(model.model.diffusion_model, "hlwq_recordings"):
        lines.append(f"  blocks: replayed as a CUDA graph up to {recorded_blocks.MAX_TOKENS:,} video tokens")
    for part in opened.whole.absent:
        lines.append(f"  no {part.name} in it: use {part.instead}")
    if facts["upscalers"]:
        lines.append(f"  upscalers: {', '.join(facts['upscalers'])}")
    lines += [f"  {line}" for line in compat.what_is_off()]
    return "\n".join(lines)


class HLWQLoadCheckpoint(io.ComfyNode):
    """An HLWQ checkpoint as MODEL, VAE and audio VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="HLWQLoadCheckpoint",
            display_name="HLWQ Load Checkpoint",
            category="HLWQ/loaders",
            description="Loads an HLWQ (PolarQuant) checkpoint. Its weights stay packed in memory and are decoded layer by "
            "layer as they are used. Refuses a checkpoint that is not complete.",
            search_aliases=[
                "hlwq",
                "polarquant",
                "ltx",
                "ltx 2.3",
                "q5",
                "5 bit",
                "5-bit",
                "quantized",
                "low vram",
                "load checkpoint",
                "checkpoint loader",
                "load ltx",
                "ltx loader",
            ],  # fmt: skip
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=list(locations.checkpoints(now=False)),
                    tooltip="A folder or file under models/hlwq, models/checkpoints or models/diffusion_models, "
                    "recognised by what its files hold.",
                ),
                *decoding_inputs(),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The diffusion model, its weights packed."),
                io.Vae.Output(
                    display_name="VAE", tooltip="The video VAE. A checkpoint without one says so: use Load VAE then."
                ),
                io.Vae.Output(display_name="AUDIO VAE", tooltip="The audio VAE with its vocoder."),
                io.String.Output(display_name="report", tooltip="What was loaded and how it is decoded."),
            ],
            hidden=[io.Hidden.prompt],
        )

    @classmethod
    def validate_inputs(cls, checkpoint: str) -> bool | str:
        """Say before anything runs that a checkpoint is not there, and which are."""
        return compat.why_not(compat.Feature.LOADING) or locations.refusal((locations.checkpoint, checkpoint))

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, **others: Any) -> list[tuple[str, int, int]]:
        """The files: a checkpoint that was repaired or replaced is loaded again."""
        return still_used.fingerprint(locations.checkpoint(checkpoint))

    @classmethod
    def execute(
        cls,
        checkpoint: str,
        **inputs: Any,
    ) -> io.NodeOutput:
        """Load the checkpoint."""
        path = locations.checkpoint(checkpoint)
        prompt = getattr(cls.hidden, "prompt", None)
        used = {part for output, part in OUTPUTS.items() if connected(prompt, "HLWQLoadCheckpoint", checkpoint, output)}
        model, vae, audio_vae, report = load_checkpoint(path, Choices(**inputs), used, share=True)
        return io.NodeOutput(
            model,
            AbsentPart(path, ltx.VIDEO_VAE, LOAD_VAE) if vae is None else vae,
            AbsentPart(path, ltx.AUDIO_VAE, LOAD_VAE) if audio_vae is None else audio_vae,
            report,
        )
