"""The CUDA kernel that decodes. It is also run on the CPU: its source is C++ but for a handful of intrinsics."""

from __future__ import annotations

import ctypes
import itertools
from types import SimpleNamespace

import pytest
import torch

from hlwq_core.backends import cuda, eager
from hlwq_core.backends.cuda import decode, nvrtc

from .host_kernel import kernel_on_the_host
from .layers import DTYPES, STEPS, VARIANTS, layer

RUN = r"""
extern "C" void run(const unsigned char* codes, const unsigned short* norms, const float* table, void* out,
                    unsigned total, unsigned num_blocks, unsigned in_features) {
    launch((total + 3) / 4, 32, [=] {
        hlwq_decode(codes, norms, table, (value_t*)out, total, num_blocks, in_features);
    });
}
"""


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernel")

    def make(bits: int, packing: str, dtype: torch.dtype, accumulate: bool = False):
        return kernel_on_the_host(folder, decode.SOURCE, decode.options(bits, packing, dtype, accumulate), RUN)

    return make


@pytest.mark.parametrize("bits, packing", VARIANTS)
def test_the_cuda_kernels_source_computes_what_eager_does(build, bits, packing):
    dtype = DTYPES[(bits + len(packing)) % 3] if bits != 5 else torch.bfloat16
    library = build(bits, packing, dtype)
    for rows, in_features in ((3, 256), (2, 200)):
        packed = layer(rows, in_features, bits, packing)
        found = torch.zeros((rows, in_features), dtype=dtype)
        pointers = [ctypes.c_void_p(x.data_ptr()) for x in (packed.codes, packed.norms, packed.table(), found)]
        library.run(*pointers, packed.norms.numel(), packed.norms.shape[1], in_features)
        expected = eager.decode(packed, torch.float32)
        step = STEPS[dtype]
        assert torch.allclose(found.float(), expected, rtol=step, atol=1e-5), (rows, in_features)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_cuda_kernels_source_adds_to_a_patch_with_one_rounding(build, dtype):
    library = build(5, "msb", dtype, accumulate=True)
    for rows, in_features in ((3, 256), (2, 200)):
        packed = layer(rows, in_features)
        patch = torch.randn(rows, in_features, generator=torch.Generator().manual_seed(1)).to(dtype)
        found = patch.clone()
        pointers = [ctypes.c_void_p(x.data_ptr()) for x in (packed.codes, packed.norms, packed.table(), found)]
        library.run(*pointers, packed.norms.numel(), packed.norms.shape[1], in_features)
        exact = eager.decode(packed, torch.float32) + patch.float()
        step = STEPS[dtype]
        assert torch.allclose(found.float(), exact, rtol=step, atol=1e-5)
        by_eager = eager.decode(packed, dtype, patch.clone(), accumulate=True)
        assert torch.equal(by_eager, exact.to(dtype))


def test_a_launch_hands_its_arguments_to_the_driver(monkeypatch):
    """Without a GPU: a stand-in for cuLaunchKernel reads what it is given, as the driver does."""
    calls = []

    def driver(function, *numbers):
        *shape, stream, addresses, extra = numbers
        cells = ctypes.cast(addresses, ctypes.POINTER(ctypes.c_void_p))
        pointed = ctypes.c_uint64.from_address(cells[0]).value, ctypes.c_uint32.from_address(cells[1]).value
        calls.append((function, *shape, stream, *pointed, extra))
        return 0

    signature = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, *[ctypes.c_uint] * 7, *[ctypes.c_void_p] * 3)
    monkeypatch.setattr(nvrtc, "_driver_launch", lambda: signature(driver))
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 77)
    kernel = SimpleNamespace(function=123, device_index=0)
    target = torch.zeros(4)
    launch = nvrtc.Launch(kernel, 10, 256, nvrtc.pointer(target), ctypes.c_uint32(5))
    launch()
    launch.arguments[0].value = 99
    launch()
    assert calls[0] == (123, 10, 1, 1, 256, 1, 1, 0, 77, target.data_ptr(), 5, None)
    assert calls[1][9] == 99
    monkeypatch.setattr(nvrtc, "_driver_launch", lambda: lambda *arguments: 719)
    with pytest.raises(RuntimeError, match="719"):
        nvrtc.Launch(kernel, 1, 32)()


@pytest.mark.parametrize("arch", ["sm_75", "sm_89", "sm_90"])
def test_nvrtc_builds_every_variant(arch):
    pytest.importorskip("cuda.bindings.nvrtc")
    try:
        for bits, packing in VARIANTS if arch == "sm_90" else VARIANTS[:2]:
            for dtype, add in itertools.product(DTYPES, (False, True)):
                cubin = nvrtc.compile_cubin(decode.SOURCE, decode.options(bits, packing, dtype, add), arch)
                assert decode.FUNCTION.encode() in cubin
    except RuntimeError as error:
        if "library" in str(error).lower():
            pytest.skip(f"NVRTC is not installed: {error}")
        raise


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_agrees_with_eager(dtype):
    sizes = ((1, 128), (33, 200), (512, 4096))
    for (bits, packing), (rows, in_features) in itertools.product(VARIANTS, sizes):
        packed = layer(rows, in_features, bits, packing)
        assert decode._kernel(0, bits, packing, dtype) is not None
        found = cuda.BACKEND.decode(packed.to("cuda"), dtype)
        expected = eager.decode(packed, torch.float32)
        step = STEPS[dtype]
        assert torch.allclose(found.float().cpu(), expected, rtol=step, atol=1e-5)
