"""Long work behind the front end's buttons: progress, cancelling, and errors as events."""

from __future__ import annotations

import threading

import pytest


@pytest.fixture
def routes(pack, monkeypatch):
    from comfyui_hlwq.nodes import routes

    events: list[dict] = []
    ended = threading.Event()

    def send(event, data):
        assert event == "hlwq.job"
        events.append(data)
        if data["state"] != "running":
            ended.set()

    monkeypatch.setattr(routes.PromptServer.instance, "send_sync", send)
    routes.events, routes.ended = events, ended
    return routes


def test_progress_and_end(routes):
    def work(job):
        job.tick("half", 1, 2)
        return "all well"

    job = routes._start("verify", "a", work)
    assert routes.ended.wait(10)
    assert routes.events[0] | {"state": "running", "text": "half", "done": 1, "total": 2} == routes.events[0]
    assert routes.events[-1]["state"] == "done"
    assert routes.events[-1]["text"] == "all well"
    assert {event["job"] for event in routes.events} == {job.id}


def test_cancel_stops_at_the_next_step(routes):
    def work(job):
        while not routes.ended.wait(0.01):
            job.tick("on and on", 1, 2)
        raise AssertionError("it went on after the cancel")

    job = routes._start("verify", "b", work)
    assert routes._start("verify", "b", work) is job
    job.cancel()
    assert routes.ended.wait(10)
    assert routes.events[-1]["state"] == "cancelled"


@pytest.mark.parametrize("known", [True, False])
def test_errors_are_told_whole(routes, known):
    error = routes.InputError("no", fix="say yes") if known else OSError(28, "No space left on device")

    def work(job):
        raise error

    routes._start("download", "c", work)
    assert routes.ended.wait(10)
    assert routes.events[-1]["state"] == "failed"
    assert ("what to do: say yes" if known else "No space left on device") in routes.events[-1]["text"]
