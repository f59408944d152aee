"""Fast mode on CUDA: its kernels compute their definitions, also on the CPU; the vendor's products and what they refuse."""

from __future__ import annotations

import ctypes

import pytest
import torch

from hlwq_core.backends import cuda, eager, eight_bit
from hlwq_core.backends.cuda import eight_bit as kernels
from hlwq_core.backends.cuda import nvrtc
from hlwq_core.backends.eight_bit import KINDS, EightBit

from .host_kernel import kernel_on_the_host
from .layers import activations, layer, relative


def test_a_bias_that_the_vendors_product_refuses_is_added_apart(monkeypatch):
    calls = []

    def scaled_mm(a, b, scale_a, scale_b, bias, scale_result, dtype, fast_accum):
        calls.append(bias is not None)
        if bias is not None:
            raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")
        return ((a.float() @ b.float()) * scale_a * scale_b).to(dtype)

    monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)
    monkeypatch.setattr(kernels, "_bias_apart", set())
    x = eight_bit.round_rows(torch.randn(8, 128), "fp8")
    w = eight_bit.round_rows(torch.randn(16, 128), "fp8")
    bias = torch.randn(16).bfloat16()
    for _ in range(2):
        found = kernels.multiply_fp8(x, w, bias, torch.bfloat16)
        assert relative(found, eight_bit.multiply(x, w, bias, torch.bfloat16)) < 5e-3
    assert calls == [True, False, False], "what was refused once is asked for again"

    def no_memory(*args):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch, "_scaled_mm", no_memory)
    monkeypatch.setattr(kernels, "_bias_apart", set())
    with pytest.raises(torch.OutOfMemoryError):
        kernels.multiply_fp8(x, w, bias, torch.bfloat16)
    assert not kernels._bias_apart


WEIGHT = r"""
extern "C" void run(const unsigned char* codes, const unsigned short* norms, const float* table, unsigned char* out,
                    float* scales, unsigned rows, unsigned num_blocks, float peak) {
    launch((rows + 1) / 2, 64, [=] { hlwq_eight_bit(codes, norms, table, out, scales, rows, num_blocks, peak); });
}
"""
ROTATE = r"""
extern "C" void run(const void* x, unsigned char* out, float* scales, unsigned rows, unsigned columns,
                    unsigned padded) {
    launch(rows, (padded + 511) / 512 * 32, [=] { hlwq_rotate((const value_t*)x, out, scales, columns, padded); });
}
"""
SCALE = r"""
extern "C" void run(const int* sums, const float* rs, const float* cs, const unsigned short* bias, unsigned short* out,
                    unsigned rows, unsigned columns) {
    launch(rows, 32, [=] { hlwq_scale(sums, rs, cs, bias, out, columns); });
}
"""


def addresses(*tensors: torch.Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


def empty(rows: int, columns: int, kind: str) -> EightBit:
    values = torch.full((rows, columns), 77, dtype=torch.uint8).view(eight_bit.DTYPES[kind])
    return EightBit(values, torch.full((rows, 1), -1.0))


def assert_same(found: EightBit, expected: EightBit) -> None:
    """Equal, but for values in the middle of two levels, which may go either way."""
    assert torch.allclose(found.scales, expected.scales, rtol=1e-5)
    differ = found.values.view(torch.uint8) != expected.values.view(torch.uint8)
    assert float(differ.float().mean()) < 0.01
    dense = [pair.values.float() * pair.scales for pair in (found, expected)]
    assert relative(*dense) < 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits, packing", [(5, "msb"), (5, "lsb"), (4, "nibble"), (6, "msb"), (8, "byte")])
def test_the_kernel_for_weights_computes_its_definition(tmp_path, kind, bits, packing):
    options = kernels.weight_options(bits, packing, kind)
    library = kernel_on_the_host(tmp_path, kernels.WEIGHT, options, WEIGHT)
    for rows, columns in ((3, 640), (2, 200)):
        packed = layer(rows, columns, bits, packing)
        num_blocks = packed.norms.shape[1]
        found = empty(rows, num_blocks * 128, kind)
        peak = ctypes.c_float(float(packed.table().abs().max()))
        library.run(*addresses(packed.codes, packed.norms, packed.table(), *found), rows, num_blocks, peak)
        assert_same(found, eight_bit.weight(packed, kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", eight_bit.INPUTS)
def test_the_kernel_for_activations_computes_its_definition(tmp_path, kind, dtype):
    library = kernel_on_the_host(tmp_path, kernels.ROTATE, kernels.rotate_options(dtype, kind), ROTATE)
    for rows, columns in ((3, 640), (2, 200), (1, 128), (2, 1056)):
        x = activations(rows, columns).to(dtype)
        padded = -(-columns // 128) * 128
        found = empty(rows, padded, kind)
        library.run(*addresses(x, *found), rows, columns, padded)
        assert_same(found, eight_bit.rotate(x, kind))


def test_the_kernel_that_scales_int8_sums(tmp_path):
    sums = torch.randint(-100000, 100000, (3, 40), dtype=torch.int32)
    row_scales, column_scales = torch.rand(3), torch.rand(40)
    bias = torch.randn(40).bfloat16()
    for add in (False, True):
        library = kernel_on_the_host(tmp_path, kernels.SCALE, kernels.scale_options(torch.bfloat16, add), SCALE)
        found = torch.zeros(3, 40, dtype=torch.bfloat16)
        library.run(*addresses(sums, row_scales, column_scales, bias, found), 3, 40)
        expected = sums.float() * row_scales[:, None] * column_scales + (bias.float() if add else 0)
        assert torch.allclose(found.float(), expected, rtol=8e-3, atol=1e-3)


@pytest.mark.parametrize("arch, kinds", [("sm_75", ("int8",)), ("sm_89", KINDS), ("sm_90", KINDS)])
def test_nvrtc_builds_the_kernels(arch, kinds):
    pytest.importorskip("cuda.bindings.nvrtc")
    try:
        for kind in kinds:
            weights = kernels.weight_options(5, "msb", kind)
            assert b"hlwq_eight_bit" in nvrtc.compile_cubin(kernels.WEIGHT, weights, arch)
            for dtype in (torch.bfloat16, torch.float16):
                activations = kernels.rotate_options(dtype, kind)
                assert b"hlwq_rotate" in nvrtc.compile_cubin(kernels.ROTATE, activations, arch)
        assert b"hlwq_scale" in nvrtc.compile_cubin(kernels.SCALE, kernels.scale_options(torch.float16, True), arch)
    except RuntimeError as error:
        if "library" in str(error).lower():
            pytest.skip(f"NVRTC is not installed: {error}")
        raise


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu(kind):
    device = torch.device("cuda", 0)
    fast = cuda.BACKEND.fast[kind]
    if fast.constraints.refuses(device) is not None:
        pytest.skip(f"this card has no {kind}")
    fast.prove(device)
    for rows, columns in ((2048, 2048), (4096, 16384)):
        packed = layer(rows, columns).to(device)
        x, bias = activations(1000, columns).to(device), torch.randn(rows, device=device).bfloat16()
        exact = x.float() @ eager.decode(packed, torch.float32).t() + bias.float()
        weight = eight_bit.empty(rows, packed.padded, kind, device)
        fast.prepare(packed)(weight)
        assert relative(fast.multiply(fast.rotate(x), weight, bias, torch.bfloat16), exact) < 0.06
