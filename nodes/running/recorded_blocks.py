"""A model's transformer blocks as one CUDA graph: in fast mode the host could not keep up with the card at small sizes.

ComfyUI asks for the blocks once a step. With arguments of new shapes they run as ever; the next time they are recorded, which
takes one or two steps more, and from then on replayed, until sampling ends. A recording knows where its weights are: what moved,
was patched or hooked since runs as ever. Nothing is recorded where the host is fast enough (many tokens), where a node changes
what blocks do, or where too few steps would use it: how many that are is known once there was a recording.

The environment variable HLWQ_CUDA_GRAPHS=0 turns it off, HLWQ_CUDA_GRAPHS=1 turns it on for exact decoding as well.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import torch

from ...hlwq_core.running import cuda_graph
from .. import compat
from . import faster_attention, kept_decoded

ENVIRONMENT_VARIABLE = "HLWQ_CUDA_GRAPHS"
DEVICE = "cuda"
# With more tokens the card takes longer than the host, and a graph's memory is large.
MAX_TOKENS = 12 * 1024
# With fewer steps, the first recording takes longer than it saves.
MIN_STEPS = 6
# Where weights come and go all the time, no more than so many are made until sampling ends.
MAX_RECORDINGS = 4
# A recording has its own copy of whatever lives during a block: so many times the size of the video's tokens, at most.
MEMORY = 32
# What the blocks read of `transformer_options`, and what is there for others.
READ = ("run_vx", "run_ax", "a2v_cross_attn", "v2a_cross_attn")
NOT_READ = {"callbacks", "cond_or_uncond", "prefetch_dynamic_vbars", "sample_sigmas", "sigmas", "uuids", "wrappers"}

_log = logging.getLogger("hlwq")


class _RecordsBlocks:
    """Mixed into the class of a diffusion model by `use`; `hlwq_recordings` is the model's `Recordings`."""

    def _process_transformer_blocks(
        self,
        x: Any,
        context: Any,
        attention_mask: Any,
        timestep: Any,
        pe: Any,
        transformer_options: dict[str, Any] = {},  # noqa: B006  as the method that it stands for
        self_attention_mask: Any = None,
        **others: Any,
    ) -> Any:
        run = super()._process_transformer_blocks  # type: ignore[misc]
        arguments = [x, context, attention_mask, timestep, pe, self_attention_mask]
        if not torch.compiler.is_compiling():
            results = self.hlwq_recordings.run(run, self.transformer_blocks, arguments, transformer_options)  # type: ignore
            if results is not None:
                return results
        return _run_blocks(run, transformer_options, *arguments, **others)


class Recordings:
    """A model's recordings.

    Args:
        model: ComfyUI's model around the diffusion model.
    """

    def __init__(self, model: Any):
        self._model = weakref.ref(model)
        self._ready: dict[Hashable, tuple[cuda_graph.Recording, compat.Whereabouts]] = {}
        self._made = 0
        # Steps from which a recording pays, of all that was seen; the host's speed varies, so half of what was known remains.
        self._pays_from: dict[Hashable, float] = {}
        self._refused = False

    def run(
        self, run: Callable[..., Any], blocks: torch.nn.ModuleList, arguments: list[Any], options: dict[str, Any]
    ) -> list[torch.Tensor] | None:
        """What the blocks give, by a recording, or as one is made; None if they are to run as ever.

        Args:
            run: the model's own method.
            blocks: what it runs.
            arguments: of it, but for `transformer_options`.
            options: these.
        """
        if self._refused or compat.memory_is_compiled() or not _pays(arguments[0], options):
            return None
        read = _recordable(options)
        if read is None:
            return None
        leaves: list[torch.Tensor] = []
        try:
            structure = cuda_graph.flatten(arguments, leaves)
        except cuda_graph.Unrecordable as reason:
            _log.debug("HLWQ: the blocks are not recorded: %s", reason)
            return None
        if any(leaf.device != leaves[0].device for leaf in leaves):
            return None
        # The blocks are in it because torch.compile puts others in their place.
        key = (structure, tuple(read.items()), *blocks)
        if key not in self._pays_from:
            self._pays_from[key] = MIN_STEPS
            return None
        steps = len(options["sample_sigmas"]) - 1
        try:
            if key in self._ready:
                return self._replay(key, leaves)
            if steps < self._pays_from[key] or self._made >= MAX_RECORDINGS:
                return None
            return self._record(key, functools.partial(_run_blocks, run, read), blocks, structure, leaves)
        except Exception as error:  # whatever it is: the blocks run as ever, and raise it again if it is their own
            self.release()
            self._refused = True
            _log.warning(
                "HLWQ: the blocks cannot run as a CUDA graph, they run one by one: %s", str(error).split("\n", 1)[0]
            )
            return None

    def _replay(self, key: Hashable, leaves: list[torch.Tensor]) -> list[torch.Tensor] | None:
        recording, whereabouts = self._ready[key]
        if whereabouts.unchanged():
            return recording.replay(leaves)
        recording.close()
        del self._ready[key]
        return None

    def _record(
        self,
        key: Hashable,
        function: Callable[..., Any],
        blocks: torch.nn.ModuleList,
        structure: Hashable,
        leaves: list[torch.Tensor],
    ) -> list[torch.Tensor] | None:
        whereabouts = compat.Whereabouts.of(blocks, leaves[0].device)
        if whereabouts is None:
            return None
        if _is_compiled(blocks) and torch.cuda.get_allocator_backend() == "cudaMallocAsync":
            # Compiled code asks the driver for the addresses of what it is given, and while it records there are none.
            self._pays_from[key] = math.inf
            return None
        if not self._has_room(leaves[0]):
            self._made = MAX_RECORDINGS  # it takes long to find out
            return None
        self._made += 1
        with compat.uninterrupted():
            recording = cuda_graph.Recording(function, structure, leaves)
        results, recording.results = recording.results, []
        self._pays_from[key] = (self._pays_from[key] + 1 + recording.pays_after) / 2
        _log.debug("HLWQ: the blocks are recorded; that pays from %.1f steps on", self._pays_from[key])
        if whereabouts.unchanged():
            self._ready[key] = recording, whereabouts
        else:
            recording.close()
        return results

    def _has_room(self, video: torch.Tensor) -> bool:
        """Whether the card has memory for a recording; decoded weights that were kept make room."""
        needed = MEMORY * video.nbytes + compat.model_management.minimum_inference_memory()
        missing = needed - compat.unused_memory(video.device)
        model = self._model()
        return missing <= 0 or (model is not None and kept_decoded.give_back(model, video.device, missing) >= missing)

    def release(self) -> None:
        """Give their memory back."""
        for recording, _ in self._ready.values():
            recording.close()
        self._ready.clear()
        self._made = 0


def _run_blocks(run: Callable[..., Any], options: dict[str, Any], *arguments: Any, **others: Any) -> list[torch.Tensor]:
    *first, self_attention_mask = arguments
    return run(*first, transformer_options=options, self_attention_mask=self_attention_mask, **others)


def _is_compiled(blocks: torch.nn.ModuleList) -> bool:
    """Whether torch.compile's code stands for a block or a part of one."""
    return any("_orig_mod" in module._modules for module in blocks.modules())


def _pays(x: Any, options: dict[str, Any]) -> bool:
    return (
        isinstance(x, list)
        and x[0].device.type == DEVICE
        and x[0].shape[0] * x[0].shape[1] <= MAX_TOKENS
        and options.get("sample_sigmas") is not None
        and not torch.is_grad_enabled()
    )


def _recordable(options: dict[str, Any]) -> dict[str, Any] | None:
    """What of `transformer_options` the blocks read; None where something is in it that they might call or change."""
    read = {}
    for name, value in options.items():
        if name in NOT_READ or (name in ("patches", "patches_replace") and not value):
            continue
        known = name in READ and isinstance(value, (bool, int))
        ours = name == faster_attention.KEY and value is faster_attention.faster_attention
        if not known and not ours:
            _log.debug("HLWQ: the blocks are not recorded: transformer_options has %s", name)
            return None
        read[name] = value
    return read


def wanted(fast: bool) -> bool:
    """Whether the user wants it, in fast mode or not. NVIDIA's graphs only: AMD's were never tried."""
    setting = os.environ.get(ENVIRONMENT_VARIABLE, "")
    return torch.version.hip is None and (setting == "1" or (fast and setting != "0"))


@functools.lru_cache(maxsize=8)
def _recording_class(kind: type) -> type:
    return type(kind.__name__, (_RecordsBlocks, kind), {"__module__": kind.__module__})


def use(model: Any) -> None:
    """Let a model's blocks be recorded, if they are LTX's as this module knows them."""
    inner = model.diffusion_model
    if compat.blocks_can_be_recorded(inner):
        kind: Any = type(inner)
        inner.__class__ = _recording_class(kind)
        inner.hlwq_recordings = Recordings(model)


def release(model: Any) -> None:
    """After sampling."""
    if hasattr(model.diffusion_model, "hlwq_recordings"):
        model.diffusion_model.hlwq_recordings.release()
