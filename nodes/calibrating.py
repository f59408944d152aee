"""Gathering what the inputs of a model's linear layers look like, while it samples for somebody else.

While it does, the model runs as exactly as it can and layer by layer: fast mode, recorded blocks and compiled code would hide the
inputs, or give others. The samples are the same as without, up to what these three do to them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..hlwq_core.codec.calibration import Calibration, bare, identity_of, values_of
from ..hlwq_core.errors import HLWQError
from ..hlwq_core.running import packed_tensor
from .running import as_chosen

# Narrower layers are no layers that HLWQ packs.
MIN_WIDTH = 64
# A key of `transformer_options` that recorded blocks do not know: with it in there they run one by one.
MARK = "hlwq_calibrates"

_log = logging.getLogger("hlwq")


class Gathering:
    """A wrapper around sampling runs; what it gathered is written after each of them, also of one that was interrupted.

    Args:
        path: of the file; what is in it already is gone on with.
        moments, full_bytes: see `Calibration`.
    """

    def __init__(self, path: Path, moments: str, full_bytes: int):
        self.path = path
        self._options = {"moments": moments, "full_bytes": full_bytes}
        self._calibration: Calibration | None = None

    def __call__(self, run: Any, *args: Any, **kwargs: Any) -> Any:
        """One sampling run: `run` is ComfyUI's, of a guider."""
        patcher = run.class_obj.model_patcher
        as_chosen.apply(patcher)  # ComfyUI does within the run, where it would undo what is done here
        calibration = self._of(patcher)
        with _plainly(patcher.model), calibration.watching():
            try:
                result = run(*args, **kwargs)
                calibration.samples += 1
            except BaseException:
                try:
                    self._save(calibration)
                except HLWQError as error:  # what ended the run is the error to tell; the next one writes this too
                    _log.error("HLWQ: the calibration is not written: %s", error)
                raise
            self._save(calibration)
            return result

    def _save(self, calibration: Calibration) -> None:
        if not any(calibration.counts.values()):
            return
        calibration.save(self.path)
        _log.info(
            "HLWQ: calibration of %d layers after %d runs: %s",
            len(calibration.counts), calibration.samples, self.path,
        )  # fmt: skip

    def _of(self, patcher: Any) -> Calibration:
        """The calibration of this model, with this file's contents."""
        model = patcher.model.diffusion_model
        layers = linear_layers(model)
        loras = bool(patcher.patches or patcher.hook_patches or patcher.injections)
        if self._calibration is None or not self._calibration.is_of(layers) or self._calibration.loras != loras:
            calibration = Calibration(layers, identity=_identity(model), loras=loras, **self._options)  # type: ignore[arg-type]
            if self.path.exists():
                calibration.go_on(self.path)
            self._calibration = calibration
        return self._calibration


def linear_layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The linear layers of a diffusion model by their weights' names, bare of what stands before them in files."""
    return {
        bare(f"{name}.weight"): module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module.in_features >= MIN_WIDTH
    }


def _identity(model: torch.nn.Module) -> dict[str, list[float]]:
    state = {
        name: value
        for name, value in model.state_dict().items()
        if not packed_tensor.is_packed(value) and value.is_floating_point() and value.device.type != "meta"
    }
    return {name: values_of(state[name]) for name in identity_of((n, tuple(v.shape)) for n, v in state.items())}


@contextlib.contextmanager
def _plainly(model: torch.nn.Module) -> Iterator[None]:
    """Neither 8 bits nor compiled code; recorded blocks are off by `MARK`."""
    fast = {module: module.eight_bit for module in model.modules() if getattr(module, "eight_bit", None) is not None}
    for module in fast:
        module.eight_bit = None  # type: ignore[assignment]
    # Older versions of torch than 2.6 have no such switch; compiled code then runs with the hooks traced into it.
    stance = getattr(torch.compiler, "set_stance", None)
    try:
        with stance("force_eager") if stance is not None else contextlib.nullcontext():
            yield
    finally:
        for module, kind in fast.items():
            module.eight_bit = kind
