"""Blocks of several ranks are recorded and replayed by all of them, or by none: whoever does another thing waits for ever."""

from __future__ import annotations

import threading

import pytest
import torch

from tests.ranks.threads import Threads

from .test_recorded_blocks import StandIn, recorded  # noqa: F401  a fixture
from .test_splitting import copied, forwards, plain

RANK = threading.local()


class FailsOnOne(StandIn):
    """On rank 1 it cannot be recorded."""

    def __init__(self, *args):
        if RANK.number == 1:
            raise RuntimeError("called a synchronizing CUDA operation")
        super().__init__(*args)


class DiffersOnOne(StandIn):
    """On rank 1 the first replay gives other results."""

    def __init__(self, *args):
        super().__init__(*args)
        if RANK.number == 1:
            raise RuntimeError("the recording differs")


@pytest.fixture
def run(recorded):  # noqa: F811
    """`run(count, before)`: so many forwards of two ranks; `before(rank, recordings, number)` comes before each."""
    from comfyui_hlwq.hlwq_core.parallel.exchange import Council, Exchange
    from comfyui_hlwq.nodes.parallel.splitting import Split

    models = [recorded() for _ in range(2)]
    inners = [model.model.diffusion_model for model in models]
    arguments, expected = forwards(models[0], plain(), steps=6)[0]
    for recording in StandIn.made:
        recording.close()
    StandIn.made.clear()
    inners[0].hlwq_recordings.__init__(models[0].model)

    def run(count, before=lambda rank, recordings, number: None):
        threads = Threads(2)

        def work(rank):
            RANK.number = rank
            group = threads.group(rank)
            split = Split(inners[rank], Exchange(group, rank, 2), Council(group))
            results = []
            with torch.inference_mode(), split.installed():
                for number in range(count):
                    before(rank, inners[rank].hlwq_recordings, number)
                    given = {name: copied(value) for name, value in arguments.items()}
                    results.append([part.clone() for part in inners[rank]._forward(**given)])
            return results

        for results in threads.run(work):
            for result in results:
                assert all(torch.allclose(a, b, atol=1e-5, rtol=1e-4) for a, b in zip(result, expected, strict=True))
        return inners

    return run


def test_all_record_and_replay(run):
    run(5)
    assert [recording.replays for recording in StandIn.made] == [3, 3]


def test_without_room_on_one_none_records(run):
    def before(rank, recordings, number):
        if rank == 1:
            recordings._has_room = lambda video: False

    run(4, before)
    assert StandIn.made == []


@pytest.mark.parametrize("kind", [FailsOnOne, DiffersOnOne])
def test_a_failure_of_one_is_the_others(run, monkeypatch, kind):
    from comfyui_hlwq.hlwq_core.running import cuda_graph

    monkeypatch.setattr(cuda_graph, "Recording", kind)
    inners = run(4)
    assert all(inner.hlwq_recordings._refused and not inner.hlwq_recordings._ready for inner in inners)


def test_what_does_not_pay_on_one_is_not_kept(run, monkeypatch):
    from comfyui_hlwq.hlwq_core.running import cuda_graph

    class DoesNotPay(StandIn):
        @property
        def pays_after(self):
            return float("inf") if RANK.number == 1 else 1.0

    monkeypatch.setattr(cuda_graph, "Recording", DoesNotPay)
    inners = run(3)
    assert not any(inner.hlwq_recordings._ready for inner in inners)


def test_all_make_it_anew_when_one_has_lost_it(run):
    def before(rank, recordings, number):
        if rank == 1 and number == 3:
            recordings.release()

    run(7, before)
    # Forwards: first, recorded, replayed, one has none, recorded, replayed, replayed.
    assert len(StandIn.made) == 4 and sorted(recording.replays for recording in StandIn.made) == [1, 1, 2, 2]


def test_weights_that_are_away_on_one_are_waited_for(run):
    from types import SimpleNamespace

    def before(rank, recordings, number):
        if rank != 1 or number not in (3, 4):
            return
        (kept,) = recordings._ready.values()
        if number == 3:
            recordings.whereabouts, away = kept.whereabouts, SimpleNamespace()
            away.unchanged = away.came_back = lambda: False
            away.may_come_back = lambda: True
            kept.whereabouts = away
        else:
            kept.whereabouts = recordings.whereabouts

    run(6, before)
    assert [recording.replays for recording in StandIn.made] == [3, 3] and not any(r.closed for r in StandIn.made)
