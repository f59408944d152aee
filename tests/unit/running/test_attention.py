"""Attention by torch's kernels in another order of preference: the same result, and only where it is of use."""

from __future__ import annotations

import pytest
import torch

from hlwq_core.running import attention


@pytest.mark.parametrize("size", attention.HEAD_SIZES)
def test_it_computes_attention(size):
    attention.prove(torch.device("cpu"), size)


def test_a_wrong_kernel_is_noticed(monkeypatch):
    right = attention.attend
    monkeypatch.setattr(attention, "attend", lambda *parts: right(*parts) * 1.1)
    with pytest.raises(RuntimeError, match="differs from its definition"):
        attention.prove(torch.device("cpu"), 64)


def test_a_scale_is_heeded():
    parts = [torch.randn(1, 8, 128).bfloat16() for _ in range(3)]
    uniform = attention.attend(*parts, 2, scale=0.0)
    mean = parts[2].float().mean(dim=1, keepdim=True)
    assert torch.allclose(uniform.float(), mean.expand(1, 8, 128), atol=1e-2)


def test_where_it_is_of_use():
    large, small = torch.empty(1, 4096, 256, dtype=torch.bfloat16), torch.empty(1, 64, 256, dtype=torch.bfloat16)
    assert attention.fits(large, large, 2) and attention.fits(large, large, 4)
    assert not attention.fits(large, small, 2)
    assert not attention.fits(large, large, 8), "heads of 32"
    assert not attention.fits(large.float(), large.float(), 2)
    assert not attention.fits(large.view(1, 2, 4096, 128), large, 2)


def test_no_gpu_no_cudnn():
    assert "no CUDA device" in attention.unavailable_reason(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu():
    device = torch.device("cuda", 0)
    reason = attention.unavailable_reason(device)
    assert (reason is None) == (torch.cuda.get_device_capability(device) >= attention.CAPABILITY), reason
