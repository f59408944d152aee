"""Passes over activations that are put off until a layer reads them, which then does them as it rotates (fast mode).

A transformer block modulates what its layers read, gates what an attention gives, and puts GELU between two layers: each a pass
over all tokens that only reads and writes. While `Pending.put_off` is on, these give a `Pending` instead of a tensor. A packed
layer takes it as it is; whatever else touches it gets the tensor, made by the very calls that were put off. So the block's own
code stays in charge: a call that is not known here, or comes in another order, runs as ever.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ..backends.activations import Steps
from ..backends.eight_bit import INPUTS, EightBit

# Layers that fewer rows go through decode exactly (fast.MIN_ROWS), and a pass over so few is none worth saving.
MIN_ROWS = 512


class Pending:
    """A tensor that is yet to be made.

    Args:
        shape: of the tensor.
        source: `[batch, tokens, columns]`, contiguous: what the steps are for.
        steps: these, or None where no kernel does them (a product alone, which a residual may take).
        make: makes the tensor as the block would have.
        product: `source · product`, where that is all.
        norm: weight and epsilon of a root-mean-square norm, where that is all.
    """

    __slots__ = ("_make", "_tensor", "norm", "product", "shape", "source", "steps")

    def __init__(
        self,
        shape: torch.Size,
        source: torch.Tensor,
        steps: Steps | None,
        make: Callable[[], torch.Tensor],
        product: torch.Tensor | None = None,
        norm: tuple[torch.Tensor, float] | None = None,
    ):
        self.shape, self.source, self.steps, self.product, self.norm = shape, source, steps, product, norm
        self._make = make
        self._tensor: torch.Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensor."""
        return self.source.dtype

    @property
    def device(self) -> torch.device:
        """Where it will be."""
        return self.source.device

    @property
    def requires_grad(self) -> bool:
        """Nothing is put off where gradients are asked for."""
        return False

    def numel(self) -> int:
        """As of the tensor."""
        return self.source.numel()

    def dim(self) -> int:
        """As of the tensor."""
        return len(self.shape)

    def tensor(self) -> torch.Tensor:
        """The tensor itself."""
        with torch._C.DisableTorchFunction():  # else it would be put off again
            if self._tensor is None:
                self._tensor = self._make()
            return self._tensor.view(self.shape)

    def rotate(
        self, rotate_after: Callable[[torch.Tensor, Steps, bool], tuple[EightBit, torch.Tensor | None]], dense: bool
    ) -> EightBit:
        """The activations in 8 bits.

        Args:
            rotate_after: see `Fast.rotate_after`.
            dense: whether somebody will want the tensor as well.
        """
        assert self.steps is not None
        rows = self.source.view(-1, self.source.shape[-1])
        rotated, whole = rotate_after(rows, self.steps, dense and self._tensor is None)
        if whole is not None:  # then nobody needs what it was made of
            self._tensor, self.source, self.steps = whole, whole.view(self.source.shape), None
            self._make = lambda: whole
        return rotated

    def view(self, *shape: Any) -> Any:
        """As of a tensor; put off as well where only heads are put together, or taken apart for their rotary embedding."""
        size = tuple(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        heads = self.norm is not None and len(size) == 4 and size[:2] == tuple(self.shape[:2])
        if heads or (self.steps is not None and size == tuple(self.source.shape)):
            whole = torch.empty(self.shape, device="meta").view(size).shape
            same = Pending(whole, self.source, self.steps, self.tensor, self.product, self.norm)
            same._tensor = self._tensor
            return same
        return self.tensor().view(size)

    reshape = view

    def __add__(self, other: Any) -> Any:
        return _add(self, other)

    __radd__ = __add__

    def __mul__(self, other: Any) -> Any:
        return torch.mul(self.tensor(), other)

    __rmul__ = __mul__

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tensor(), name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*made(args), **made(kwargs or {}))


def made(value: Any) -> Any:
    """A value with the tensors for what was put off, at any depth."""
    if isinstance(value, Pending):
        return value.tensor()
    if type(value) in (list, tuple):
        return type(value)(made(item) for item in value)
    return {name: made(item) for name, item in value.items()} if type(value) is dict else value


def _operator(name: str) -> Any:
    def call(self: Pending, *others: Any) -> Any:
        return getattr(self.tensor(), name)(*others)

    return call


# Python looks operators up in the class.
for _name in ("sub", "rsub", "truediv", "rtruediv", "pow", "neg", "matmul", "getitem", "setitem", "len", "iter"):
    setattr(Pending, f"__{_name}__", _operator(f"__{_name}__"))


def _is_long(x: Any) -> bool:
    """Whether `x` is a block's activations, of enough rows, as a layer could take them."""
    return (
        type(x) is torch.Tensor
        and x.dim() == 3
        and x.dtype in INPUTS
        and x.shape[0] * x.shape[1] >= MIN_ROWS
        and x.is_contiguous()
    )


def _of_groups(part: Any, like: torch.Tensor) -> torch.Tensor | None:
    """A modulation `[batch, 1 or tokens, columns]` as rows, one for each group of tokens; None if it is none."""
    if type(part) is not torch.Tensor or part.dim() != 3 or part.dtype is not like.dtype or part.device != like.device:
        return None
    batch, tokens, columns = part.shape
    if (batch, columns) != (like.shape[0], like.shape[2]) or tokens not in (1, like.shape[1]) or part.stride(2) != 1:
        return None
    if batch > 1 and tokens > 1 and part.stride(0) != tokens * part.stride(1):
        return None
    return part[:, 0] if tokens == 1 else part.as_strided((batch * tokens, columns), (part.stride(1), 1))


def _multiply(x: Any, other: Any) -> Any:
    """`x · factor`, of which a modulation or a gated residual may come, or an attention's heads with their gates."""
    if isinstance(x, Pending) or isinstance(other, Pending) or not isinstance(other, torch.Tensor):
        return None
    if not _is_long(x):
        return _gate(x, other)
    factor = _of_groups(other, x)
    return None if factor is None else Pending(x.shape, x, None, lambda: torch.mul(x, other), factor)


def _gate(x: Any, gates: Any) -> Any:
    """Heads `[batch, tokens, heads, size]` times gates `[batch, tokens, heads, 1]`."""
    if (
        type(x) is not torch.Tensor
        or type(gates) is not torch.Tensor
        or x.dim() != 4
        or gates.shape != (*x.shape[:3], 1)
    ):
        return None
    source = x.flatten(2) if x.is_contiguous() else x
    if not _is_long(source) or gates.dtype is not x.dtype or not gates.is_contiguous():
        return None
    rows = Steps(gates=gates.view(-1, x.shape[2]))
    return Pending(x.shape, source, rows, lambda: torch.mul(x, gates))


def _add(x: Any, other: Any) -> Any:
    """`x · factor + shift`."""
    if not isinstance(x, Pending):
        x, other = other, x
    if not isinstance(x, Pending) or isinstance(other, Pending):
        return None if not isinstance(x, Pending) else torch.add(x.tensor(), made(other))
    shift = None if x.product is None or x.steps is not None else _of_groups(other, x.source)
    if shift is None or x.product is None:
        return torch.add(x.tensor(), other)
    factor = x.product
    groups = max(factor.shape[0], shift.shape[0])
    factor, shift = (_spread(part, groups) for part in (factor, shift))
    return Pending(x.shape, x.source, Steps(factor=factor, shift=shift), lambda: torch.add(x.tensor(), other))


def _spread(part: torch.Tensor, groups: int) -> torch.Tensor:
    """Rows for as many groups."""
    return part if part.shape[0] == groups else part.repeat_interleave(groups // part.shape[0], 0)


def _gelu(x: Any, approximate: str = "none") -> Any:
    if approximate != "tanh" or not _is_long(x):
        return None
    return Pending(x.shape, x, Steps(gelu=True), lambda: torch.nn.functional.gelu(x, approximate="tanh"))


def _norm(x: Any, shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    """The norm of queries or keys, which their rotary embedding may come after."""
    if weight is None or eps is None or not _is_long(x) or tuple(shape) != (x.shape[-1],):
        return None
    if (
        type(weight) not in (torch.Tensor, torch.nn.Parameter)
        or weight.dtype is not x.dtype
        or weight.device != x.device
    ):
        return None
    kept = weight.clone()  # its memory may be the next layer's weight by then
    return Pending(x.shape, x, None, lambda: torch.nn.functional.rms_norm(x, shape, kept, eps), norm=(kept, eps))


def _dropout(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    return x if isinstance(x, Pending) and (not training or p == 0) else None


_RULES: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((torch.mul, torch.Tensor.mul, torch.Tensor.__mul__), _multiply),
    **dict.fromkeys((torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__), _add),
    torch.nn.functional.gelu: _gelu,
    torch.nn.functional.dropout: _dropout,
}
_WITH_OPTIONS = (_gelu, _dropout, _norm)
_IN_PLACE = {torch.Tensor.add_: 1, torch.Tensor.addcmul_: 2}


@functools.lru_cache(maxsize=1)
def _ropes() -> tuple[Any, ...]:
    """comfy-kitchen's rotary embeddings of a head's halves, of two tensors and of one."""
    names = "apply_rope_split_half", "apply_rope_split_half1"
    found = [getattr(torch.ops.comfy_kitchen, name, None) for name in names]
    return () if None in found else tuple(found)


def _are_of(frequencies: torch.Tensor, shape: torch.Size) -> bool:
    """Whether frequencies `[1, tokens, heads, size / 2, 2, 2]` are for queries of this shape."""
    _, tokens, heads, size = shape
    return tuple(frequencies.shape) == (1, tokens, heads, size // 2, 2, 2)


class PutOff(TorchFunctionMode):
    """While it is on, `Pending` stands for what the next layer may do by itself.

    Args:
        add_product: see `Fast.add_product`.
        norm_rope: see `Fast.norm_rope`; None where what attends may not know what to do with a `Pending`.
    """

    def __init__(
        self,
        add_product: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None],
        norm_rope: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor] | None = None,
    ):
        super().__init__()
        self._add_product, self._norm_rope = add_product, norm_rope
        self._ropes = () if norm_rope is None else _ropes()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = _RULES.get(func)
        if self._ropes and not kwargs and func in self._ropes:
            *parts, frequencies = args
            roped = [self._rope(part, frequencies) for part in parts]
            return roped[0] if len(roped) == 1 else tuple(roped)
        if func is torch.nn.functional.rms_norm and self._norm_rope is not None:
            rule = _norm
        if rule is not None and (not kwargs or rule in _WITH_OPTIONS) and not torch.is_grad_enabled():
            result = rule(*args, **kwargs)
            if result is not None:
                return result
        elif func in _IN_PLACE and not kwargs and len(args) == 1 + _IN_PLACE[func] and self._add(*args):
            return args[0]
        return func(*args, **kwargs)

    def _rope(self, x: Any, frequencies: torch.Tensor) -> torch.Tensor:
        """Queries or keys `[batch, tokens, heads, size]` after their rotary embedding, and their norm if that was put off."""
        norm = x.norm if isinstance(x, Pending) else None
        if norm is None or self._norm_rope is None or x._tensor is not None or not _are_of(frequencies, x.shape):
            return torch.ops.comfy_kitchen.apply_rope_split_half1(made(x), frequencies)
        rows = x.source.view(-1, x.source.shape[-1])
        return self._norm_rope(rows, norm[0], frequencies[0], norm[1]).view(x.shape)

    def _add(self, x: Any, other: Any, factor: Any = None) -> bool:
        """Whether `x += other · factor` is done."""
        if factor is None:
            if not isinstance(other, Pending) or other.product is None:
                return False
            other, factor = other.source, other.product
        elif _is_long(other):
            factor = _of_groups(factor, other)
        if factor is None or not _is_long(x) or type(other) is not torch.Tensor or x.shape != other.shape:
            return False
        if torch.is_grad_enabled() or x.dtype is not other.dtype:
            return False
        columns = x.shape[-1]
        self._add_product(x.view(-1, columns), other.view(-1, columns), factor)
        return True
