"""What ranks exchange when each has some of a sequence's tokens: heads for tokens before an attention, and back (Ulysses).

Each rank has all weights, so nothing else is sent. Tokens and heads are divided as evenly as whole numbers allow, without
padding; where there are more ranks than heads, some have no head and wait.

Source: DeepSpeed Ulysses, arXiv 2309.14509.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed


class Group(Protocol):
    """Of a backend of torch.distributed, what is used: tensors of one rank come to the others. `wait` orders the results before
    whatever the rank computes next."""

    def alltoall_base(
        self, output: torch.Tensor, input: torch.Tensor, received: list[int], sent: list[int], options: Any
    ) -> Any:
        """`sent[r]` elements of `input` go to rank r, `received[r]` come from it into `output`."""

    def allreduce(self, tensors: list[torch.Tensor], options: Any) -> Any:
        """Each tensor becomes the reduction over the ranks, in place."""

    def broadcast(self, tensors: list[torch.Tensor], options: Any) -> Any:
        """Each tensor becomes the root's."""


def shares(count: int, ranks: int) -> list[int]:
    """How many of `count` each rank has: as even as can be, the first ones one more."""
    whole, more = divmod(count, ranks)
    return [whole + (rank < more) for rank in range(ranks)]


def span(count: int, rank: int, ranks: int) -> slice:
    """Which of `count` a rank has."""
    parts = shares(count, ranks)
    begin = sum(parts[:rank])
    return slice(begin, begin + parts[rank])


class Exchange:
    """A rank's side of the exchange.

    Args:
        group: the ranks, for tensors on the device that they compute on.
        rank, ranks: which of how many.

    Attributes:
        sent: bytes that went to other ranks.
    """

    def __init__(self, group: Group, rank: int, ranks: int):
        self._group = group
        self.rank, self.ranks = rank, ranks
        self.sent = 0
        self._options = torch.distributed.AllToAllOptions()
        if hasattr(self._options, "asyncOp"):  # on the rank's own stream, without events
            self._options.asyncOp = False

    def to_heads(self, x: torch.Tensor, heads: int, tokens: int) -> torch.Tensor:
        """From this rank's tokens of all heads to all tokens of this rank's heads.

        Args:
            x: `[batch, own tokens, heads · size]`.
            heads: of all ranks.
            tokens: of all ranks.

        Returns:
            `[batch, tokens, own heads · size]`.
        """
        batch, own, width = x.shape
        size = width // heads
        parts = x.split([count * size for count in shares(heads, self.ranks)], dim=2)
        mine = shares(heads, self.ranks)[self.rank] * size
        rows = shares(tokens, self.ranks)
        received = self._swap(_joined(parts), [p.numel() for p in parts], [batch * row * mine for row in rows])
        if batch == 1:
            return received.view(1, tokens, mine)
        pieces = received.split([batch * row * mine for row in rows])
        return torch.cat([piece.view(batch, row, mine) for piece, row in zip(pieces, rows, strict=True)], dim=1)

    def to_tokens(self, x: torch.Tensor, heads: int, size: int) -> torch.Tensor:
        """The inverse of `to_heads`.

        Args:
            x: `[batch, tokens, own heads · size]`.
            heads: of all ranks.
            size: of a head.

        Returns:
            `[batch, own tokens, heads · size]`.
        """
        batch, tokens, mine = x.shape
        rows = shares(tokens, self.ranks)
        parts = x.split(rows, dim=1)
        own = rows[self.rank]
        widths = [count * size for count in shares(heads, self.ranks)]
        packed = x.reshape(-1) if batch == 1 else _joined(parts)
        received = self._swap(packed, [part.numel() for part in parts], [batch * own * width for width in widths])
        return self._beside(received, [(batch, own, width) for width in widths], dim=2)

    def own_heads(self, x: torch.Tensor, heads: int) -> torch.Tensor:
        """This rank's heads of something that every rank has: `[batch, n, heads · size]` to `[batch, n, own heads · size]`."""
        size = x.shape[2] // heads
        mine = span(heads, self.rank, self.ranks)
        return x[:, :, mine.start * size : mine.stop * size]

    def all_heads(self, x: torch.Tensor, heads: int, size: int) -> torch.Tensor:
        """The inverse of `own_heads`, on every rank."""
        batch, count, _ = x.shape
        return self._gather(x, [(batch, count, part * size) for part in shares(heads, self.ranks)], dim=2)

    def own_tokens(self, x: torch.Tensor) -> torch.Tensor:
        """This rank's tokens of `[batch, tokens, …]`."""
        return x[:, span(x.shape[1], self.rank, self.ranks)]

    def all_tokens(self, x: torch.Tensor, tokens: int) -> torch.Tensor:
        """The inverse of `own_tokens`, on every rank."""
        batch, _, *rest = x.shape
        return self._gather(x, [(batch, part, *rest) for part in shares(tokens, self.ranks)], dim=1)

    def broadcast(self, tensors: list[torch.Tensor]) -> None:
        """Rank 0's tensors to all ranks, in place; contiguous."""
        for tensor in tensors:
            if tensor.numel():
                _wait(self._group.broadcast([_bytes(tensor)], torch.distributed.BroadcastOptions()))

    def _gather(self, x: torch.Tensor, shapes: list[tuple[int, ...]], dim: int) -> torch.Tensor:
        """Every rank's part beside the others', on every rank."""
        flat = x.reshape(-1)
        sizes = [torch.Size(shape).numel() for shape in shapes]
        received = self._swap(flat.repeat(self.ranks), [flat.numel()] * self.ranks, sizes)
        return self._beside(received, shapes, dim)

    @staticmethod
    def _beside(received: torch.Tensor, shapes: list[tuple[int, ...]], dim: int) -> torch.Tensor:
        pieces = received.split([torch.Size(shape).numel() for shape in shapes])
        return torch.cat([piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)], dim=dim)

    def _swap(self, packed: torch.Tensor, sent: list[int], received: list[int]) -> torch.Tensor:
        item = packed.element_size()
        output = packed.new_empty(sum(received))
        # As bytes: not every backend knows every dtype.
        counts = [n * item for n in received], [n * item for n in sent]
        _wait(self._group.alltoall_base(_bytes(output), _bytes(packed), *counts, self._options))
        self.sent += (sum(sent) - sent[self.rank]) * item
        return output


def _joined(parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def _wait(work: Any) -> None:
    if work is not None:
        work.wait()


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(-1).view(torch.uint8)


class Council:
    """The ranks agree on what they do next: whoever does another thing than the others would wait for them for ever.

    Args:
        group: the ranks, for tensors in memory; no card has to be waited for.
    """

    def __init__(self, group: Group):
        self._group = group

    def most(self, value: float) -> float:
        """The largest of the ranks' values."""
        agreed = torch.tensor([value], dtype=torch.float64)
        options = torch.distributed.AllreduceOptions()
        options.reduceOp = torch.distributed.ReduceOp(torch.distributed.ReduceOp.MAX)
        _wait(self._group.allreduce([agreed], options))
        return float(agreed)

    def least(self, value: float) -> float:
        """The smallest of them."""
        return -self.most(-value)

    def all(self, value: bool) -> bool:
        """Whether it is so on every rank."""
        return self.most(not value) == 0

    def any(self, value: bool) -> bool:
        """Whether it is so on one at least."""
        return self.most(value) != 0
