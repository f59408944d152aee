"""What ranks exchange, as threads of one process, and over gloo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hlwq_core.parallel import exchange, message
from hlwq_core.parallel.exchange import Council, Exchange
from tests.ranks.threads import Threads

REPO = Path(__file__).resolve().parents[3]


def test_shares_are_as_even_as_can_be() -> None:
    assert exchange.shares(10, 4) == [3, 3, 2, 2] and exchange.shares(2, 3) == [1, 1, 0]
    assert exchange.span(10, 2, 4) == slice(6, 8)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("ranks, heads, tokens", [(2, 4, 10), (3, 4, 11), (4, 2, 7), (8, 8, 9), (2, 4, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_rank_gets_its_heads_of_all_tokens_and_back(
    batch: int, ranks: int, heads: int, tokens: int, dtype: torch.dtype
) -> None:
    whole = torch.randn(batch, tokens, heads * 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    threads = Threads(ranks)

    def work(rank: int) -> None:
        own = Exchange(threads.group(rank), rank, ranks)
        part = own.own_tokens(whole)
        of_heads = own.to_heads(part, heads, tokens)
        assert torch.equal(of_heads, own.own_heads(whole, heads))
        assert torch.equal(own.to_tokens(of_heads, heads, 3), part)
        assert torch.equal(own.all_heads(of_heads, heads, 3), whole)
        assert torch.equal(own.all_tokens(part, tokens), whole)

    threads.run(work)


def test_what_is_sent_is_counted() -> None:
    """(N − 1) / N² of the tensor a rank, which the predictions count on."""
    threads = Threads(2)

    def work(rank: int) -> int:
        own = Exchange(threads.group(rank), rank, 2)
        own.to_heads(torch.zeros(1, 6, 4 * 8), 4, 12)
        return own.sent

    assert threads.run(work) == [12 * 32 * 4 // 4] * 2


def test_ranks_agree() -> None:
    threads = Threads(3)

    def work(rank: int) -> tuple:
        council = Council(threads.group(rank))
        return council.most(rank), council.least(rank), council.all(rank > 0), council.any(rank > 1), council.all(True)

    assert threads.run(work) == [(2, 0, False, True, True)] * 3


OVER_GLOO = """
import sys, torch, torch.distributed
from datetime import timedelta
from hlwq_core.parallel.exchange import Council, Exchange
from hlwq_core.parallel.groups import Groups
from pathlib import Path
rank = int(sys.argv[1])
groups = Groups(Path(sys.argv[2]), rank, 2, torch.device("cpu"))
own, council = Exchange(groups.data, rank, 2), Council(groups.control)
whole = torch.arange(7 * 12.0).view(1, 7, 12).bfloat16()
heads = own.to_heads(own.own_tokens(whole), 3, 7)
assert torch.equal(heads, own.own_heads(whole, 3)) and torch.equal(own.to_tokens(heads, 3, 4), own.own_tokens(whole))
assert torch.equal(own.all_tokens(own.own_tokens(whole), 7), whole)
given = whole.clone() if rank == 0 else torch.zeros_like(whole)
own.broadcast([given])
assert torch.equal(given, whole) and council.most(rank) == 1
import os
listening = [line.split() for line in open("/proc/net/tcp").readlines()[1:]] if os.path.exists("/proc/net/tcp") else []
own = {os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")}
mine = [line[1] for line in listening if line[3] == "0A" and f"socket:[{line[9]}]" in own]
assert (mine or not listening) and all(address.startswith("0100007F:") for address in mine), mine
print("right")
"""


def test_two_processes_over_gloo(tmp_path: Path) -> None:
    both = [
        subprocess.Popen(
            [sys.executable, "-c", OVER_GLOO, str(rank), str(tmp_path / "meeting")],
            cwd=REPO,
            text=True,
            stdout=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    assert [process.communicate(timeout=120)[0].strip() for process in both] == ["right", "right"]


def test_a_message_is_json_and_tensors() -> None:
    import json

    x = torch.randn(2, 3)
    value = {
        "x": x,
        "list": [x, 1, None, 2.5, "a", True],
        "pair": (x[0], {"deep": torch.bfloat16}),
        3: torch.Size([1, 2]),
    }
    tensors: list[torch.Tensor] = []
    packed = json.loads(json.dumps(message.pack(value, tensors)))
    made = message.unpack(packed, tensors)
    assert (
        len(tensors) == 2 and made["x"] is x and made["list"][0] is x and made["list"][1:] == [1, None, 2.5, "a", True]
    )
    assert made["pair"][1] == {"deep": torch.bfloat16} and made[3] == (1, 2)
    shapes = json.loads(json.dumps(message.describe(tensors, x.device)))
    assert [(t.shape, t.dtype) for t in message.empty(shapes, x.device)] == [(t.shape, t.dtype) for t in tensors]


@pytest.mark.parametrize("value", [{"f": print}, [object()], {(1, 2): 3}, torch.nn.Parameter(torch.zeros(1))])
def test_code_is_not_sent(value: object) -> None:
    with pytest.raises(message.Unsendable, match="options"):
        message.pack(value, [], "options")
