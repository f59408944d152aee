"""Fast mode: rotated activations and 8-bit weights give what exact decoding gives, but for a small error of 8 bits."""

from __future__ import annotations

import ctypes

import pytest
import torch

from hlwq_core.backends import cuda_fast, nvrtc
from hlwq_core.backends.eager import decode
from hlwq_core.codec.codec import encode
from hlwq_core.format.codebook import scaled_table
from hlwq_core.format.packing import pack
from hlwq_core.running import fast, operators

from ..backends.host_kernel import kernel_on_the_host

KINDS = fast.KINDS


def layer(rows: int, columns: int, bits: int = 5, packing: str = "msb"):
    """Codes, norms and table of a random weight whose blocks differ in size."""
    generator = torch.Generator().manual_seed(rows + columns)
    weight = torch.randn(rows, columns, generator=generator) * (1 + torch.rand(rows, 1, generator=generator))
    weight[:, : columns // 2] *= 0.3
    made = encode(weight, bits)
    return pack(made.codes, bits, packing), made.norms, scaled_table("infinite", bits)


def activations(rows: int, columns: int) -> torch.Tensor:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns))
    x[:, 3] *= 30  # an outlier channel, as transformers have
    return x.bfloat16()


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("kind, allowed", [("fp8", 0.045), ("int8", 0.02)])
@pytest.mark.parametrize("columns", [512, 456])
def test_a_linear_layer_in_8_bits(kind, allowed, columns):
    codes, norms, table = layer(64, columns)
    x, bias = activations(40, columns), torch.randn(64).bfloat16()
    exact = x.float() @ decode(codes, norms, table, 5, "msb", columns, torch.float32).t() + bias.float()
    with torch.inference_mode():
        weight = fast.weight(codes, norms, table, 5, "msb", kind)
        found = fast.multiply(fast.rotate(x, kind), weight, bias, torch.bfloat16)
    assert weight.values.dtype is fast.DTYPES[kind] and found.dtype is torch.bfloat16
    assert relative(found, exact) < allowed
    operators.release_scratch()


def test_zero_rows_and_zero_activations():
    codes, norms, table = layer(16, 256)
    norms[3] = 0
    x = activations(32, 256)
    x[5] = 0
    for kind in KINDS:
        weight = fast.weight_reference(codes, norms, table, 5, "msb", kind)
        found = fast.multiply(fast.rotate(x, kind), weight, None, torch.bfloat16)
        assert torch.isfinite(found).all() and not found[5].any() and not found[:, 3].any()


def test_layers_in_turn_share_one_rotation():
    made = []

    def make(x):
        made.append(x)
        return x, x

    shared = fast.SharedInput()
    x, context = torch.ones(2), torch.ones(2)
    for tensor, last in ((x, False), (x, False), (x, True)):
        shared.rotate(tensor, last, make)
    assert len(made) == 1
    for tensor, last in ((x, False), (context, False), (context, True)):
        shared.rotate(tensor, last, make)
    assert [id(tensor) for tensor in made[1:]] == [id(x), id(context)]
    assert shared._input is None and shared._rotated is None, "an input is kept beyond its use"


def test_a_bias_that_the_vendors_product_refuses_is_added_apart(monkeypatch):
    calls = []

    def scaled_mm(a, b, scale_a, scale_b, bias, scale_result, dtype, fast_accum):
        calls.append(bias is not None)
        if bias is not None:
            raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")
        return ((a.float() @ b.float()) * scale_a * scale_b).to(dtype)

    monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)
    monkeypatch.setattr(fast, "_bias_apart", set())
    x = fast.round_rows(torch.randn(8, 128), "fp8")
    w = fast.round_rows(torch.randn(16, 128), "fp8")
    bias = torch.randn(16).bfloat16()
    for _ in range(2):
        found = fast._multiply_fp8(x, w, bias)
        assert relative(found, fast.multiply_reference(x, w, bias, torch.bfloat16)) < 5e-3
    assert calls == [True, False, False], "what was refused once is asked for again"

    def no_memory(*args):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch, "_scaled_mm", no_memory)
    monkeypatch.setattr(fast, "_bias_apart", set())
    with pytest.raises(torch.OutOfMemoryError):
        fast._multiply_fp8(x, w, bias)
    assert not fast._bias_apart


def test_no_gpu_no_fast_mode():
    kind, reason = fast.choose(torch.device("cpu"))
    assert kind is None and "CUDA" in reason and fast.unavailable_reason(torch.device("cpu")) == reason


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


def empty(rows: int, columns: int, kind: str) -> fast.EightBit:
    values = torch.full((rows, columns), 77, dtype=torch.uint8).view(fast.DTYPES[kind])
    return fast.EightBit(values, torch.full((rows, 1), -1.0))


def assert_same(found: fast.EightBit, expected: fast.EightBit) -> None:
    """Equal, but for values in the middle of two levels, which may go either way."""
    assert torch.allclose(found.scales, expected.scales, rtol=1e-5)
    differ = found.values.view(torch.uint8) != expected.values.view(torch.uint8)
    assert float(differ.float().mean()) < 0.01
    dense = [pair.values.float() * pair.scales for pair in (found, expected)]
    assert relative(*dense) < 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits, packing", [(5, "msb"), (5, "lsb"), (4, "nibble"), (6, "msb"), (8, "byte")])
def test_the_kernel_for_weights_computes_its_definition(tmp_path, kind, bits, packing):
    options = cuda_fast.weight_options(bits, packing, kind)
    library = kernel_on_the_host(tmp_path, cuda_fast.WEIGHT, options, WEIGHT)
    for rows, columns in ((3, 640), (2, 200)):
        codes, norms, table = layer(rows, columns, bits, packing)
        num_blocks = norms.shape[1]
        found = empty(rows, num_blocks * 128, kind)
        peak = ctypes.c_float(float(table.abs().max()))
        library.run(*addresses(codes, norms, table, *found), rows, num_blocks, peak)
        assert_same(found, fast.weight_reference(codes, norms, table, bits, packing, kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", fast.INPUTS)
def test_the_kernel_for_activations_computes_its_definition(tmp_path, kind, dtype):
    library = kernel_on_the_host(tmp_path, cuda_fast.ROTATE, cuda_fast.rotate_options(dtype, kind), ROTATE)
    for rows, columns in ((3, 640), (2, 200), (1, 128), (2, 1056)):
        x = activations(rows, columns).to(dtype)
        padded = -(-columns // 128) * 128
        found = empty(rows, padded, kind)
        library.run(*addresses(x, *found), rows, columns, padded)
        assert_same(found, fast.rotate_reference(x, kind))


def test_the_kernel_that_scales_int8_sums(tmp_path):
    sums = torch.randint(-100000, 100000, (3, 40), dtype=torch.int32)
    row_scales, column_scales = torch.rand(3), torch.rand(40)
    bias = torch.randn(40).bfloat16()
    for add in (False, True):
        library = kernel_on_the_host(tmp_path, cuda_fast.SCALE, cuda_fast.scale_options(torch.bfloat16, add), SCALE)
        found = torch.zeros(3, 40, dtype=torch.bfloat16)
        library.run(*addresses(sums, row_scales, column_scales, bias, found), 3, 40)
        expected = sums.float() * row_scales[:, None] * column_scales + (bias.float() if add else 0)
        assert torch.allclose(found.float(), expected, rtol=8e-3, atol=1e-3)


@pytest.mark.parametrize("arch, kinds", [("sm_75", ("int8",)), ("sm_89", KINDS), ("sm_90", KINDS)])
def test_nvrtc_builds_the_kernels(arch, kinds):
    pytest.importorskip("cuda.bindings.nvrtc")
    try:
        for kind in kinds:
            weights = cuda_fast.weight_options(5, "msb", kind)
            assert b"hlwq_eight_bit" in nvrtc.compile_cubin(cuda_fast.WEIGHT, weights, arch)
            for dtype in (torch.bfloat16, torch.float16):
                activations = cuda_fast.rotate_options(dtype, kind)
                assert b"hlwq_rotate" in nvrtc.compile_cubin(cuda_fast.ROTATE, activations, arch)
        assert b"hlwq_scale" in nvrtc.compile_cubin(cuda_fast.SCALE, cuda_fast.scale_options(torch.float16, True), arch)
    except RuntimeError as error:
        if "library" in str(error).lower():
            pytest.skip(f"NVRTC is not installed: {error}")
        raise


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu(kind):
    device = torch.device("cuda", 0)
    if torch.cuda.get_device_capability(device) < fast.CAPABILITY[kind]:
        pytest.skip(f"this card has no {kind}")
    cuda_fast.prove(device, kind)
    for rows, columns in ((2048, 2048), (4096, 16384)):
        codes, norms, table = (part.to(device) for part in layer(rows, columns))
        x, bias = activations(1000, columns).to(device), torch.randn(rows, device=device).bfloat16()
        exact = x.float() @ decode(codes, norms, table, 5, "msb", columns, torch.float32).t() + bias.float()
        found = fast.multiply(
            fast.rotate(x, kind), fast.weight(codes, norms, table, 5, "msb", kind), bias, torch.bfloat16
        )
        assert relative(found, exact) < 0.06
