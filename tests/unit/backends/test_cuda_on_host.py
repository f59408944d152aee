"""The CUDA backend's own path without a GPU: kernels built for the CPU, launched through a stand-in for the driver.

All but the driver is real: choosing and proving variants, preparing launches, the order and types of the arguments.
"""

from __future__ import annotations

import contextlib
import ctypes

import pytest
import torch

from hlwq_core.backends import cuda, eager, eight_bit
from hlwq_core.backends.cuda import decode, nvrtc
from hlwq_core.backends.cuda import eight_bit as kernels
from hlwq_core.backends.eight_bit import KINDS

from .host_kernel import kernel_on_the_host
from .layers import layer

TYPES = {
    "hlwq_decode": ["const unsigned char*", "const unsigned short*", "const float*", "value_t*", *["unsigned"] * 3],
    "hlwq_eight_bit": [
        *["const unsigned char*", "const unsigned short*", "const float*", "unsigned char*", "float*"],
        *["unsigned", "unsigned", "float"],
    ],
    "hlwq_rotate": ["const value_t*", "unsigned char*", "float*", "unsigned", "unsigned"],
    "hlwq_scale": ["const int*", "const float*", "const float*", "const value_t*", "value_t*", "unsigned"],
}
RUN = """
extern "C" void run(unsigned blocks, unsigned threads, void** p) {{ launch(blocks, threads, [=] {{ {name}({call}); }}); }}
"""


@pytest.fixture
def on_host(monkeypatch, tmp_path):
    """CUDA's launches run on the CPU; gives the names of the kernels that were launched, in order."""
    launched: list[str] = []
    libraries = {}

    class HostKernel:
        device_index = 0

        def __init__(self, device_index, source, name, definitions):
            call = ", ".join(f"*({kind}*)p[{i}]" for i, kind in enumerate(TYPES[name]))
            library = kernel_on_the_host(tmp_path, source, list(definitions), RUN.format(name=name, call=call))
            self.function = len(libraries) + 1
            libraries[self.function] = name, library

    def driver(function, blocks, y, z, threads, ty, tz, shared, stream, addresses, extra):
        assert (y, z, ty, tz, shared, stream, extra) == (1, 1, 1, 1, 0, 7, None)
        name, library = libraries[function]
        launched.append(name)
        library.run(ctypes.c_uint(blocks), ctypes.c_uint(threads), addresses)
        return 0

    for module in (decode, kernels):
        monkeypatch.setattr(module, "Kernel", HostKernel)
    monkeypatch.setattr(nvrtc, "_driver_launch", lambda: driver)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 7)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    # The proofs name a CUDA device; here it is the CPU.
    monkeypatch.setattr(torch, "device", lambda *arguments: CPU)
    caches = (decode._kernel, kernels.kernel, kernels._rotate_launch, kernels._shared_weight_launch)
    caches += (kernels._scale_launch, kernels._weight_proven)
    for cache in caches:
        cache.cache_clear()
    yield launched
    for cache in caches:
        cache.cache_clear()


CPU = torch.device("cpu")


def test_decode(on_host):
    for columns in (256, 200):
        packed = layer(4, columns)
        expected = eager.decode(packed, torch.bfloat16)
        found = cuda.BACKEND.decode(packed, torch.bfloat16)
        assert torch.allclose(found.float(), expected.float(), rtol=8e-3, atol=1e-5)
        # A prepared launch writes wherever it is told to, also between other things.
        run = cuda.BACKEND.prepare(packed, torch.bfloat16)
        wide = torch.zeros(4, columns + 8, dtype=torch.bfloat16)
        run(wide[:, 8:], False)
        assert torch.equal(wide[:, 8:], found) and not wide[:, :8].any()
        patch = torch.ones(4, columns, dtype=torch.bfloat16)
        run(patch, True)
        assert torch.allclose(patch.float(), expected.float() + 1, rtol=8e-3, atol=8e-3)
    # Two variants were built, and each was proven on two shapes before it was used.
    assert set(on_host) == {"hlwq_decode"} and len(on_host) == 2 * 3 + 4


def test_a_kernel_that_is_wrong_is_not_used(on_host, monkeypatch, caplog):
    monkeypatch.setattr(decode, "options", lambda *variant, original=decode.options: original(5, "lsb", *variant[2:]))
    packed = layer(4, 256)
    found = cuda.BACKEND.decode(packed, torch.bfloat16)
    assert torch.equal(found, eager.decode(packed, torch.bfloat16))
    assert "decoding with eager" in caplog.text and "differs from eager" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_fast_mode(on_host, kind):
    fast = cuda.BACKEND.fast[kind]
    packed = layer(48, 200)
    x = torch.randn(33, 200, generator=torch.Generator().manual_seed(4)).bfloat16()
    made = eight_bit.empty(48, 256, kind, "cpu")
    fast.prepare(packed)(made)
    # Prepared or not, it is the same.
    again = eight_bit.empty(48, 256, kind, "cpu")
    fast.weight(packed, again)
    assert torch.equal(again.values.view(torch.uint8), made.values.view(torch.uint8))
    assert torch.equal(again.scales, made.scales)
    rotated = fast.rotate(x)
    assert on_host == ["hlwq_eight_bit"] * 3 + ["hlwq_rotate"]
    exact = x.float() @ eager.decode(packed, torch.float32).t()
    found = eight_bit.multiply(rotated, made, None, torch.float32)
    assert float((found - exact).norm() / exact.norm()) < 0.05


def test_a_kernel_for_weights_that_is_wrong_is_not_used(on_host, monkeypatch, caplog):
    right = kernels.weight_options
    monkeypatch.setattr(kernels, "weight_options", lambda bits, packing, kind: right(bits, "lsb", kind))
    fast, packed = cuda.BACKEND.fast["int8"], layer(16, 256)
    expected = eight_bit.weight(packed, "int8")
    for write in (fast.prepare(packed), lambda out: fast.weight(packed, out)):
        made = eight_bit.empty(16, 256, "int8", "cpu")
        write(made)
        assert torch.equal(made.values, expected.values) and torch.equal(made.scales, expected.scales)
    assert "the kernel for int8 weights (5 bits, msb) cannot be used" in caplog.text


def test_int8_products_in_pieces(on_host, monkeypatch):
    packed = layer(48, 256)
    monkeypatch.setattr(kernels, "SUMS", 48 * 40)
    x = torch.randn(100, 256, generator=torch.Generator().manual_seed(5)).bfloat16()
    bias = torch.randn(48, generator=torch.Generator().manual_seed(6)).bfloat16()
    weight = eight_bit.weight(packed, "int8")
    rotated = eight_bit.rotate(x, "int8")
    expected = eight_bit.multiply(rotated, weight, bias, torch.bfloat16)
    found = kernels.multiply_int8(rotated, weight, bias, torch.bfloat16)
    assert torch.allclose(found.float(), expected.float(), rtol=1e-2, atol=1e-2)
    assert on_host == ["hlwq_scale"] * 3
