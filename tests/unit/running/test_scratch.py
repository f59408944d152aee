"""The buffers that layers share, and who must not share them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from hlwq_core.running import cuda_graph, scratch

CPU = torch.device("cpu")


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """As while somebody records what runs."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)


def test_layers_share_a_buffer() -> None:
    scratch.release()
    first, second = (scratch.view(4, 6, torch.float32, CPU) for _ in range(2))
    assert first.data_ptr() == second.data_ptr() and scratch.nbytes(CPU) == 96
    scratch.release()


def test_in_a_recording_of_others_each_has_memory_of_its_own(captured: None) -> None:
    """The buffer goes back, or is replaced by a larger one, while their recording may still be replayed."""
    scratch.release()
    assert scratch.is_captured()
    first, second = (scratch.view(4, 6, torch.float32, CPU) for _ in range(2))
    assert first.data_ptr() != second.data_ptr() and scratch.nbytes(CPU) == 0
    values = scratch.eight_bit(4, 128, "int8", CPU)
    assert values.values.shape == (4, 128) and scratch.nbytes(CPU) == 0


def test_a_recording_of_ours_holds_the_buffer(captured: None) -> None:
    scratch.release()
    with cuda_graph._while_recording():
        assert not scratch.is_captured()
        first, second = (scratch.view(4, 6, torch.float32, CPU) for _ in range(2))
        assert first.data_ptr() == second.data_ptr()
        assert [buffer.numel() for buffer in scratch.buffers(CPU)] == [96]
    assert scratch.is_captured()
    scratch.release()


def test_each_thread_has_its_own() -> None:
    """ComfyUI runs a model's two conditions in two threads at once, which may be on one device."""
    scratch.release()
    mine = scratch.view(4, 6, torch.float32, CPU)

    def elsewhere() -> tuple[int, int, bool]:
        other = scratch.view(4, 6, torch.float32, CPU)
        scratch.release()
        return other.data_ptr(), scratch.nbytes(CPU), cuda_graph.is_recording()

    with ThreadPoolExecutor(1) as pool, cuda_graph._while_recording():
        address, left, recording = pool.submit(elsewhere).result()
    assert address != mine.data_ptr() and not left and not recording
    assert scratch.view(4, 6, torch.float32, CPU) is mine
    scratch.release()


def test_a_recording_of_ours_is_its_threads(captured: None) -> None:
    with ThreadPoolExecutor(1) as pool, cuda_graph._while_recording():
        assert not scratch.is_captured() and pool.submit(scratch.is_captured).result()
