"""Recording a function of tensors. Taking arguments apart needs no GPU; recording does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hlwq_core.running import cuda_graph


class Slotted:
    __slots__ = ("data", "frames")

    def __init__(self, data, frames):
        self.data, self.frames = data, frames


TENSORS = st.builds(lambda rows, columns: torch.arange(rows * columns).view(rows, columns), *[st.integers(1, 3)] * 2)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text("abc", max_size=3))
VALUES = st.recursive(
    st.one_of(TENSORS, SCALARS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text("abc", max_size=2), inner, max_size=3),
        st.builds(Slotted, inner, st.integers(1, 9)),
    ),
    max_leaves=8,
)


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a is b
    if isinstance(a, Slotted):
        return type(b) is Slotted and same(a.data, b.data) and a.frames == b.frames
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(VALUES)
def test_what_is_taken_apart_is_put_together_again(value):
    leaves = []
    structure = cuda_graph.flatten(value, leaves)
    hash(structure)
    assert same(value, cuda_graph.rebuild(structure, leaves))
    again = []
    assert cuda_graph.flatten(cuda_graph.rebuild(structure, leaves), again) == structure
    assert all(a is b for a, b in zip(leaves, again, strict=True))


def structure(value):
    return cuda_graph.flatten(value, [])


def test_a_structure_tells_what_matters():
    x = torch.zeros(2, 3)
    assert structure([x, 1]) == structure([torch.ones(2, 3), 1])
    others = [
        [x, 2],
        [x, 1.0],
        [x, True],
        (x, 1),
        [x.t(), 1],
        [x.double(), 1],
        [torch.zeros(3, 2), 1],
        [x, 1, None],
        [1, x],
    ]
    for other in others:
        assert structure(other) != structure([x, 1])
    # The same tensor twice is not two equal ones: compiled code asks.
    assert structure([x, x]) != structure([x, x.clone()])


@pytest.mark.parametrize("value", [object(), {1, 2}, torch.nn.Parameter(torch.zeros(1)), lambda: None, range(3)])
def test_what_cannot_be_given_anew_is_refused(value):
    with pytest.raises(cuda_graph.Unrecordable, match=type(value).__name__):
        cuda_graph.flatten([1, {"a": value}], [])


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4),
        torch.randn(4, 3).t(),
        torch.randn(2, 1, 4).expand(2, 5, 4),
        torch.randn(8)[::2],
        torch.tensor(3.0),
        torch.randn(1, 6, 4)[:, :3],
    ],
    ids=["plain", "transposed", "expanded", "strided", "scalar", "sliced"],
)
def test_own_memory_has_the_same_strides_and_can_be_filled(tensor):
    own = cuda_graph._like(tensor)
    assert own.stride() == tensor.stride() and own.shape == tensor.shape
    cuda_graph._distinct(own).copy_(cuda_graph._distinct(tensor))
    assert torch.equal(own, tensor)


# ---- on a GPU --------------------------------------------------------------------------------------------------------

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def record(function, *arguments):
    leaves = []
    made = cuda_graph.flatten(list(arguments), leaves)
    return cuda_graph.Recording(function, made, leaves), leaves


@pytest.mark.gpu
@on_a_gpu
def test_a_replay_computes_what_the_function_does():
    weight = torch.randn(64, 64, device="cuda")

    def function(x, pair, scale):
        x.add_(1)  # as the blocks write to what they are given
        for _ in range(3):
            x = torch.nn.functional.gelu(x @ weight) * pair["a"]
        return [x * scale, x.sum(dim=0)]

    arguments = [(torch.randn(16, 64, device="cuda"), {"a": torch.randn(16, 1, device="cuda").expand(16, 64)}, 2.0)]
    arguments.append((torch.randn(16, 64, device="cuda"), {"a": torch.randn(16, 1, device="cuda").expand(16, 64)}, 2.0))
    expected = [function(a[0].clone(), *a[1:]) for a in arguments]
    recording, leaves = record(function, *arguments[0])
    try:
        assert not cuda_graph.is_recording() and recording.pays_after > 0
        assert all(map(torch.equal, recording.results, expected[0]))
        for given_, wanted in zip(arguments, expected, strict=True):
            other = []
            cuda_graph.flatten(list(given_), other)
            found = recording.replay(other)
            assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(found, wanted, strict=True))
        # Results are the caller's to keep.
        first = recording.replay(leaves)
        kept = [part.clone() for part in first]
        recording.replay(other)
        assert all(map(torch.equal, first, kept))
    finally:
        recording.close()


@pytest.mark.gpu
@on_a_gpu
def test_what_cannot_be_recorded_is_refused_and_nothing_breaks():
    x = torch.randn(16, 64, device="cuda")

    def waits(x):
        return [x * float(x.sum())]

    def reads_the_host(x):
        return [x + torch.ones(64).to(x.device)]

    def differs(x):
        return [x + 1 if torch.cuda.is_current_stream_capturing() else x]

    def raises(x):
        y = x * 2
        if torch.cuda.is_current_stream_capturing():
            raise KeyboardInterrupt(y.shape)
        return [y]

    for function, error in ((waits, "synchroniz"), (reads_the_host, "synchroniz"), (differs, "differs by")):
        with pytest.raises(RuntimeError, match=error):
            record(function, x)
    with pytest.raises(KeyboardInterrupt):
        record(raises, x)
    assert not cuda_graph.is_recording() and torch.cuda.get_sync_debug_mode() == 0
    recording, leaves = record(lambda x: [x * 2], x)
    assert torch.equal(recording.replay(leaves)[0], x * 2)
    recording.close()


@pytest.mark.gpu
@on_a_gpu
def test_memory_comes_back():
    def function(x):
        return [(x @ x).relu() @ x]

    x = torch.randn(2048, 2048, device="cuda")
    free = []
    for _ in range(4):
        record(function, x)[0].close()
        torch.cuda.empty_cache()
        free.append(torch.cuda.mem_get_info()[0])
    # The first one sets up what libraries keep for the recordings' stream.
    assert free[-1] >= free[1] - (8 << 20)
