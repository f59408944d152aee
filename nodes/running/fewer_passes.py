"""Fast mode's blocks in fewer passes: what a block does to activations between its layers is left to the next layer's kernel.

The block's own code runs (see hlwq_core/running/pending.py), as long as it is ComfyUI's: where a node replaced a method, hooked
a layer or put another in, the block runs as ever, and the log says which. HLWQ_FEWER_PASSES=0 turns it off, in an emergency.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch

from ...hlwq_core import backends, switches
from ...hlwq_core.running import packed_tensor
from ...hlwq_core.running.pending import PutOff
from .. import compat
from . import faster_attention

SWITCH = "HLWQ_FEWER_PASSES"
OURS = (faster_attention.faster_attention, faster_attention.cudnn_attention)

_log = logging.getLogger("hlwq")
# What stood in the way, said once.
_said: set[str] = set()


class _FewerPasses:
    """Mixed into the class of a block by `use`; `hlwq_kind` is the kind of 8 bits that its layers multiply in."""

    def forward(self, x: Any, *others: Any, **options: Any) -> Any:
        forward = super().forward  # type: ignore[misc]
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return forward(x, *others, **options)
        device = (x[0] if isinstance(x, (tuple, list)) else x).device
        fast = backends.fast_mode(device, self.hlwq_kind)  # type: ignore[attr-defined]
        if fast.add_product is None or not _is_as_built(self):  # type: ignore[arg-type]
            return forward(x, *others, **options)
        # Attentions of others may want queries and keys that are tensors from the start.
        ours = (options.get("transformer_options") or {}).get(faster_attention.KEY) in OURS
        with PutOff(fast.add_product, fast.norm_rope if ours else None):
            return forward(x, *others, **options)


@functools.lru_cache(maxsize=256)
def _is_known(kind: type) -> bool:
    """Whether a class of layers is ComfyUI's, torch's or the pack's."""
    return kind.__module__.startswith(("comfy.", "torch.", __name__.removesuffix(".nodes.running.fewer_passes") + "."))


def _is_as_built(block: torch.nn.Module) -> bool:
    for name, module in block.named_modules():
        state = module.__dict__
        if "forward" in state or module._forward_hooks or module._forward_pre_hooks or not _is_known(type(module)):  # type: ignore[arg-type]
            what = f"{name or 'the block'} ({compat.defined_in(state.get('forward', module))})"
            if what not in _said:
                _said.add(what)
                _log.info("HLWQ: blocks run in all their passes: something else works in %s", what)
            return False
    return True


@functools.lru_cache(maxsize=8)
def _class(kind: type) -> type:
    return type(kind.__name__, (_FewerPasses, kind), {"__module__": kind.__module__})


def use(model: torch.nn.Module, kind: str) -> None:
    """Let the blocks of a diffusion model leave passes to their layers, if they are LTX's.

    Args:
        model: the diffusion model.
        kind: of 8 bits.
    """
    if switches.off(SWITCH):
        return
    for block in compat.ltx_blocks(model):
        block.__class__ = _class(type(block))  # type: ignore[arg-type]
        block.hlwq_kind = kind  # type: ignore[assignment]
        for attention in block.children():
            gates, query = (getattr(attention, name, None) for name in ("to_gate_logits", "to_q"))
            if gates is not None and query is not None and not packed_tensor.is_packed(gates.weight):
                query.input_is_read_again = True


def stop(model: torch.nn.Module) -> None:
    """Let the blocks run in all their passes again; one that somebody made another class of stays, and is right in both modes."""
    for block in model.modules():
        if type(block).__bases__[0] is _FewerPasses:
            block.__class__ = type(block).__bases__[1]
            del block.hlwq_kind
