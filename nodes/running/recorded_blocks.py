"""A model's transformer blocks as one CUDA graph: where the host cannot keep up with the card, one launch instead of thousands.

ComfyUI asks for the blocks once a step. With arguments of new shapes they run as ever; the next time they are recorded, which
takes a step or two more, and from then on replayed, in later sampling runs as well, until ComfyUI needs the memory or the
weights go elsewhere. A recording knows where its weights are and what its blocks are made of: what moved, was patched or
hooked since runs as ever. Nothing is recorded where the host is fast enough (many tokens), where a node changes what blocks
do, or where too few steps would use it: how many that are is known once there was a recording.

Where several ranks compute the blocks (nodes/parallel), all of them record, or replay, or none: what a recording sends to another
rank, only a recording takes.

The loader's input `record_blocks` turns it off; so does HLWQ_CUDA_GRAPHS=0, in an emergency.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Protocol

import torch

from ...hlwq_core import switches
from ...hlwq_core.running import cuda_graph, scratch
from .. import compat
from . import choices, faster_attention, kept_decoded

SWITCH = "HLWQ_CUDA_GRAPHS"
# What computes blocks on several ranks.
PARALLEL = f"{__name__.rpartition('.running.')[0]}.parallel."
DEVICE = "cuda"
# With more tokens the card takes longer than the host, and a graph's memory is large.
MAX_TOKENS = 12 * 1024
# With fewer steps, the first recording takes longer than it saves.
MIN_STEPS = 6
# A size that comes again in a later run will come once more: the steps of so many runs count.
RUNS_AHEAD = 3
# Where weights come and go all the time, no more than so many are made in a run.
MAX_RECORDINGS = 4
# So many are kept, of as many sizes or conditions; the one that was not used for longest makes room.
MAX_KEPT = 4
MAX_SEEN = 100
# A recording has its own copy of whatever lives during a block: so many times the size of the video's tokens, at most.
MEMORY = 32
# What the blocks read of `transformer_options`, and what is there for others.
READ = ("run_vx", "run_ax", "a2v_cross_attn", "v2a_cross_attn")
CFG_SPLIT = "multigpu_thread_device"
NOT_READ = {"callbacks", "cond_or_uncond", "prefetch_dynamic_vbars", "sample_sigmas", "sigmas", "uuids", "wrappers"}

# What a rank could do in this step.
RUN, RECORD, WAIT, REPLAY = range(4)

_log = logging.getLogger("hlwq")


class Council(Protocol):
    """Ranks that agree (hlwq_core/parallel/exchange.py)."""

    def most(self, value: float) -> float:
        """The largest of the ranks' values."""

    def least(self, value: float) -> float:
        """The smallest of them."""

    def all(self, value: bool) -> bool:
        """Whether it is so on every rank."""


class _Alone:
    """The council of one."""

    def most(self, value: float) -> float:
        return value

    least = most

    def all(self, value: bool) -> bool:
        return value


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


class _Kept:
    """A recording, and what has to be as it was for a replay to be right.

    Attributes:
        recording: what is replayed.
        whereabouts: of the weights.
        made_of: of the blocks (`_made_of`).
        run: the sampling run that it was made in, or last compared in.
        away: steps in a row in which weights were not on the card.
    """

    def __init__(self, recording: cuda_graph.Recording, whereabouts: compat.Whereabouts, made_of: list[Any], run: int):
        self.recording, self.whereabouts, self.made_of, self.run = recording, whereabouts, made_of, run
        self.away = 0


class _Seen:
    """What is known of one structure of the arguments.

    Attributes:
        pays_from: steps from which a recording pays, of all that was seen; the host's speed varies, so half of what was known
            remains.
        first_run: the sampling run in which it came first.
        outlives: whether a recording is still good in the next run, as far as was seen.
    """

    def __init__(self, run: int):
        self.pays_from: float = MIN_STEPS
        self.first_run = run
        self.outlives = True

    def pays(self, steps: int, run: int) -> bool:
        """Whether a recording made now pays, in this run and the next ones."""
        again = self.outlives and run > self.first_run
        return steps * (RUNS_AHEAD if again else 1) >= self.pays_from


class Recordings:
    """A model's recordings.

    Args:
        model: ComfyUI's model around the diffusion model.

    Attributes:
        reasons: why blocks ran one by one where they might have been recorded, as far as others are the reason.
    """

    def __init__(self, model: Any):
        self._model = weakref.ref(model)
        self._ready: dict[Hashable, _Kept] = {}
        self._seen: dict[Hashable, _Seen] = {}
        self._run = 0
        self._made = 0
        self._refused = False
        self._council: Council = _Alone()
        self.reasons: dict[str, None] = {}

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
        model = self._model()
        if model is not None and not choices.of(model).record_blocks:
            return None  # on all ranks
        key, read, structure, leaves = self._look(blocks, arguments, options)
        try:
            can = self._could(key, blocks, options)
        except Exception as error:
            self._give_up(error)
            can = RUN
        least, most = self._council.least(can), self._council.most(can)
        if key is None or least != most:
            if least < WAIT and key in self._ready:
                self._ready.pop(key).recording.close()  # another rank has none: all make it anew
            return None
        try:
            if can == REPLAY:
                return self._ready[key].recording.replay(leaves)
            if can == RECORD:
                return self._record(key, functools.partial(_run_blocks, run, read), blocks, structure, leaves)
        except Exception as error:  # whatever it is: the blocks run as ever, and raise it again if it is their own
            if not isinstance(error, Unrecorded) and not isinstance(self._council, _Alone):
                raise  # the other ranks do not know of it
            self._give_up(error)
        return None

    def _give_up(self, error: Exception) -> None:
        self.release()
        self._refused = True
        _log.warning(
            "HLWQ: the blocks cannot run as a CUDA graph, they run one by one: %s", str(error).split("\n", 1)[0]
        )

    def _look(
        self, blocks: torch.nn.ModuleList, arguments: list[Any], options: dict[str, Any]
    ) -> tuple[Hashable, dict[str, Any], Hashable, list[torch.Tensor]]:
        """What tells these arguments from others, what blocks read of the options, and the arguments taken apart. The first is
        None where blocks are not to be recorded."""
        leaves: list[torch.Tensor] = []
        nothing: tuple[Hashable, dict[str, Any], Hashable, list[torch.Tensor]] = (None, {}, None, leaves)
        model = self._model()
        if self._refused:
            return nothing
        if compat.memory_is_compiled() or not _pays(arguments[0], options):
            return nothing
        try:
            read = _recordable(options)
            structure = cuda_graph.flatten(arguments, leaves)
        except cuda_graph.Unrecordable as reason:
            self._say(str(reason))
            return nothing
        if any(leaf.device != leaves[0].device for leaf in leaves):
            return nothing
        # The blocks are in it because torch.compile puts others in their place, the mode because its steps take another time.
        mode = choices.of(model).mode if model is not None else None
        return (structure, tuple(read.items()), compat.arithmetic(), mode, *blocks), read, structure, leaves

    def _could(self, key: Hashable, blocks: torch.nn.ModuleList, options: dict[str, Any]) -> int:
        """What this rank could do."""
        if key is None:
            return RUN
        seen = self._seen.get(key)
        if seen is None:
            if len(self._seen) >= MAX_SEEN:
                del self._seen[next(iter(self._seen))]
            self._seen[key] = _Seen(self._run)
            return RUN
        if key in self._ready:
            return self._could_replay(key, blocks)
        steps = len(options["sample_sigmas"]) - 1
        return RECORD if seen.pays(steps, self._run) and self._made < MAX_RECORDINGS else RUN

    def _say(self, reason: str) -> None:
        if reason not in self.reasons:
            self.reasons[reason] = None
            _log.info("HLWQ: the blocks run one by one, not as one CUDA graph: %s", reason)

    def _could_replay(self, key: Hashable, blocks: torch.nn.ModuleList) -> int:
        """Whether a recording is good now, or may be again at the next step; it goes if not."""
        kept = self._ready.pop(key)
        good = kept.whereabouts.unchanged() or kept.whereabouts.came_back()
        if kept.run != self._run:  # between runs nodes may change anything, within one only weights move
            same = kept.made_of == _made_of(blocks)
            self._seen[key].outlives = same and kept.whereabouts.may_come_back()
            if not same:
                kept.recording.close()
                return RUN
            kept.run = self._run
        if good:
            kept.away = 0
            self._ready[key] = kept  # as the last one used
            return REPLAY
        kept.away += 1
        if kept.away == 1 and kept.whereabouts.may_come_back():
            self._ready[key] = kept  # this step brings the weights, if they fit
            return WAIT
        kept.recording.close()
        return RUN

    def _record(
        self,
        key: Hashable,
        function: Callable[..., Any],
        blocks: torch.nn.ModuleList,
        structure: Hashable,
        leaves: list[torch.Tensor],
    ) -> list[torch.Tensor] | None:
        whereabouts = self._ready_to_record(key, blocks, leaves[0])
        if not self._council.all(whereabouts is not None) or whereabouts is None:
            return None
        seen = self._seen[key]
        self._made += 1
        recording = self._make(function, structure, leaves)
        results, recording.results = recording.results, []
        seen.pays_from = (seen.pays_from + 1 + self._council.most(recording.pays_after)) / 2
        _log.debug("HLWQ: the blocks are recorded; that pays from %.1f steps on", seen.pays_from)
        if self._council.all(recording.pays_after < math.inf and whereabouts.unchanged()):
            self._ready[key] = _Kept(recording, whereabouts, _made_of(blocks), self._run)
        else:
            recording.close()
        return results

    def _ready_to_record(
        self, key: Hashable, blocks: torch.nn.ModuleList, video: torch.Tensor
    ) -> compat.Whereabouts | None:
        """Where the weights are, if these blocks can be recorded now."""
        whereabouts = compat.Whereabouts.of(blocks, video.device)
        if whereabouts is None:
            return None
        if (reason := _changed_by_others(blocks)) is not None:
            self._say(reason)
            return None
        if _is_compiled(blocks) and torch.cuda.get_allocator_backend() == "cudaMallocAsync":
            # Compiled code asks the driver for the addresses of what it is given, and while it records there are none.
            self._seen[key].pays_from = math.inf
            return None
        while len(self._ready) >= MAX_KEPT:
            self._ready.pop(next(iter(self._ready))).recording.close()
        if not self._has_room(video):
            self._made = MAX_RECORDINGS  # it takes long to find out
            return None
        return whereabouts

    def _make(
        self, function: Callable[..., Any], structure: Hashable, leaves: list[torch.Tensor]
    ) -> cuda_graph.Recording:
        """A recording, on every rank.

        Raises:
            Unrecorded: on one of them there is none.
        """
        agreed: list[bool] = []

        def all_have(so_far: bool) -> None:
            agreed.append(self._council.all(so_far))
            if so_far and not agreed[0]:
                raise RuntimeError("another rank could not record")

        recording, failure = None, None
        try:
            with compat.uninterrupted():
                # A replay waits for the other ranks': all must have recorded before.
                recording = cuda_graph.Recording(function, structure, leaves, lambda: all_have(True))
        except Exception as error:
            failure = error
            if not agreed:
                all_have(False)
        if agreed == [True] and not self._council.all(recording is not None) and recording is not None:
            recording.close()
            recording, failure = None, RuntimeError("another rank's recording gave other results")
        if recording is None:
            raise Unrecorded(str(failure)) from failure
        return recording

    def _has_room(self, video: torch.Tensor) -> bool:
        """Whether the card has memory for a recording; decoded weights that were kept and other models make room."""
        device = video.device
        missing = MEMORY * video.nbytes + compat.model_management.minimum_inference_memory()
        missing -= compat.unused_memory(device)
        model = self._model()
        if missing <= 0 or model is None:
            return missing <= 0
        missing -= kept_decoded.give_back(model, device, missing)
        return missing <= 0 or compat.others_make_room(missing, model, device)

    def end_run(self) -> bool:
        """After a sampling run; whether recordings are kept for the next one."""
        self._run += 1
        self._made = 0
        return bool(self._ready)

    def release(self) -> int:
        """Give their memory back; the bytes that this freed, as the card counts them."""
        if not self._ready:
            return 0
        device = next(iter(self._ready.values())).recording.device
        before = compat.unused_memory(device)
        for kept in self._ready.values():
            kept.recording.close()
        self._ready.clear()
        return max(0, compat.unused_memory(device) - before)


class Unrecorded(Exception):
    """Blocks could not be recorded."""


@contextlib.contextmanager
def agreeing(inner: torch.nn.Module, council: Council) -> Iterator[None]:
    """While several ranks compute a diffusion model's blocks: what is recorded and replayed, all of them do."""
    recordings = compat.uncompiled(inner).__dict__.get("hlwq_recordings")
    if recordings is None:
        yield
        return
    alone, recordings._council = recordings._council, council
    try:
        yield
    finally:
        recordings._council = alone


def _run_blocks(run: Callable[..., Any], options: dict[str, Any], *arguments: Any, **others: Any) -> list[torch.Tensor]:
    *first, self_attention_mask = arguments
    return run(*first, transformer_options=options, self_attention_mask=self_attention_mask, **others)


def _is_compiled(blocks: torch.nn.ModuleList) -> bool:
    """Whether torch.compile's code stands for a block or a part of one."""
    return any("_orig_mod" in module._modules for module in blocks.modules())


def _made_of(blocks: torch.nn.ModuleList) -> list[Any]:
    """What the blocks do, as far as it can be changed from outside: their modules, methods and hooks, and how each multiplies."""
    found: list[Any] = []
    for module in blocks.modules():
        state = module.__dict__
        hooks = len(module._forward_hooks), len(module._forward_pre_hooks)
        found.append((module, type(module).forward, state.get("forward"), hooks, state.get("eight_bit")))
    return found


def _changed_by_others(blocks: torch.nn.ModuleList) -> str | None:
    """Why blocks may do more than compute, as far as it shows: a recording would do once what a node wants done every step.
    ComfyUI's own replacements add a LoRA to a layer's output, torch's compile it."""
    for name, module in blocks.named_modules():
        forward = module.__dict__.get("forward")
        if forward is not None and not compat.defined_in(forward).startswith(("comfy.", "torch.", PARALLEL)):
            return f"the forward of {name}{_whose(forward)}"
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            return f"a hook of {name}{_whose(hook)}"
    return None


def _pays(x: Any, options: dict[str, Any]) -> bool:
    return (
        isinstance(x, list)
        and x[0].device.type == DEVICE
        and x[0].shape[0] * x[0].shape[1] <= MAX_TOKENS
        and options.get("sample_sigmas") is not None
        and not torch.is_grad_enabled()
    )


def _recordable(options: dict[str, Any]) -> dict[str, Any]:
    """What of `transformer_options` the blocks read.

    Raises:
        Unrecordable: something is in it that they might call or change.
    """
    read = {}
    for name, value in options.items():
        if name in NOT_READ or (name in ("patches", "patches_replace") and not value):
            continue
        if name == CFG_SPLIT:
            raise cuda_graph.Unrecordable("the threads of MultiGPU CFG Split would disturb one another")
        known = name in READ and isinstance(value, (bool, int))
        if not known and not (name == faster_attention.KEY and faster_attention.is_known(value)):
            raise cuda_graph.Unrecordable(f"{name} of transformer_options{_whose(value)}")
        read[name] = value
    return read


def _whose(value: Any) -> str:
    """The Python module that a value of `transformer_options` comes from, in words; \"\" where it does not tell."""
    while isinstance(value, (dict, list, tuple)) and value:
        value = next(iter(value.values())) if isinstance(value, dict) else value[0]
    module = compat.defined_in(value)
    return "" if module == "builtins" or module.startswith("torch") else f", set by {module}"


def wanted(model: Any) -> bool:
    """Whether a model's blocks may be recorded here. NVIDIA's graphs only: AMD's were never tried."""
    here = compat.model_management.get_torch_device().type == DEVICE and torch.version.hip is None
    return here and choices.of(model).record_blocks and not switches.off(SWITCH)


@functools.lru_cache(maxsize=8)
def _recording_class(kind: type) -> type:
    return type(kind.__name__, (_RecordsBlocks, kind), {"__module__": kind.__module__})


def use(model: Any) -> None:
    """Let a model's blocks be recorded, if they are LTX's as this module knows them."""
    inner: Any = compat.uncompiled(model.diffusion_model)
    if "hlwq_recordings" not in inner.__dict__ and compat.blocks_can_be_recorded(inner):
        kind: Any = type(inner)
        inner.__class__ = _recording_class(kind)
        inner.hlwq_recordings = Recordings(model)


def _of(model: Any) -> Recordings | None:
    inner = getattr(model, "diffusion_model", None)  # a text encoder has none
    return None if inner is None else compat.uncompiled(inner).__dict__.get("hlwq_recordings")


def end_run(model: Any) -> bool:
    """After a sampling run; whether the model keeps recordings for the next one."""
    recordings = _of(model)
    return recordings is not None and recordings.end_run()


def forget(model: Any) -> None:
    """The model is to run otherwise from now on: recordings go, and what failed may be tried again."""
    recordings = _of(model)
    if recordings is not None:
        recordings._refused = False
        release(model)


def release(model: Any) -> int:
    """Give the memory of a model's recordings back, and the scratch buffer that they held: somebody needs it, or weights are about
    to go. The bytes freed, but for the buffer's."""
    recordings = _of(model)
    if recordings is None or not recordings._ready:
        return 0
    device = next(iter(recordings._ready.values())).recording.device
    freed = recordings.release()
    scratch.release(device)
    return freed
