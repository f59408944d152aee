"""Steps of activations in the kernel that rotates them: it computes their definitions, also on the CPU."""

from __future__ import annotations

import ctypes

import comfy_kitchen
import pytest
import torch

from hlwq_core.backends import activations, cuda, eight_bit
from hlwq_core.backends.activations import Steps
from hlwq_core.backends.cuda import activations as kernels
from hlwq_core.backends.cuda import nvrtc
from hlwq_core.backends.cuda.eight_bit import ROTATE, rotate_options
from hlwq_core.backends.eight_bit import KINDS

from .host_kernel import kernel_on_the_host
from .layers import STEPS, relative
from .test_cuda_eight_bit import addresses, assert_same, empty

ROWS, COLUMNS, HEADS, GROUPS = 2, 384, 2, 2
RUN = r"""
extern "C" void run(const void* x, unsigned char* out, float* scales, const void* first, const void* second, void* dense,
                    unsigned rows, unsigned columns, unsigned padded, unsigned first_stride, unsigned second_stride,
                    unsigned each) {
    launch(rows, (padded + 511) / 512 * 32, [=] {
        hlwq_rotate((const value_t*)x, out, scales, columns, padded, (const value_t*)first, (const value_t*)second,
                    first_stride, second_stride, each, (value_t*)dense);
    });
}
"""
ADD = r"""
extern "C" void run(void* x, const void* other, const void* factor, unsigned rows, unsigned columns, unsigned stride,
                    unsigned each) {
    launch(rows, (columns + 511) / 512 * 32, [=] {
        hlwq_add_product((value_t*)x, (const value_t*)other, (const value_t*)factor, columns, stride, each);
    });
}
"""


ROPE = r"""
extern "C" void run(const void* x, const void* weight, const void* frequencies, void* out, unsigned rows, unsigned columns,
                    unsigned tokens, unsigned size, float epsilon) {
    launch(rows, (columns + 511) / 512 * 32, [=] {
        hlwq_norm_rope((const value_t*)x, (const value_t*)weight, (const frequency_t*)frequencies, (value_t*)out, tokens,
                       size, epsilon);
    });
}
"""


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def steps_of(name: str, dtype: torch.dtype, rows: int = ROWS, columns: int = COLUMNS) -> Steps:
    many = numbers(GROUPS, 3, columns).to(dtype)  # as core has them: a row of several values
    return {
        "modulated": Steps(factor=many[:, 0] + 1, shift=many[:, 2]),
        "gated": Steps(gates=numbers(rows, HEADS).to(dtype)),
        "gelu": Steps(gelu=True),
    }[name]


NAMES = ("modulated", "gated", "gelu")


@pytest.mark.parametrize("name, dtype, kind", [
    ("modulated", torch.bfloat16, "fp8"), ("modulated", torch.float16, "int8"),
    ("gated", torch.bfloat16, "int8"), ("gated", torch.float32, "fp8"),
    ("gelu", torch.bfloat16, "fp8"), ("gelu", torch.float16, "int8"),
])  # fmt: skip
def test_the_kernel_computes_the_definition(tmp_path, name, dtype, kind):
    steps = steps_of(name, dtype)
    x = (3 * numbers(ROWS, COLUMNS)).to(dtype)
    for dense in (False, True):
        options = rotate_options(dtype, kind, kernels.step_of(steps), dense)
        library = kernel_on_the_host(tmp_path, ROTATE, options, RUN)
        found, whole = empty(ROWS, COLUMNS, kind), torch.full_like(x, torch.nan)
        first, second = (steps.gates, x) if name == "gated" else (x, x)
        strides = (0, 0, COLUMNS // HEADS)
        if steps.factor is not None and steps.shift is not None:
            first, second = steps.factor, steps.shift
            strides = (first.stride(0), second.stride(0), ROWS // GROUPS)
        library.run(*addresses(x, *found, first, second, whole), ROWS, COLUMNS, COLUMNS, *strides)
        expected = activations.apply(x, steps)
        assert_same(found, eight_bit.rotate(expected, kind))
        assert not dense or relative(whole, expected) < STEPS[dtype], "the activations themselves"


@pytest.mark.parametrize("dtype", STEPS)
def test_the_kernel_adds_a_product(tmp_path, dtype):
    library = kernel_on_the_host(tmp_path, kernels.ADD_PRODUCT, kernels.add_product_options(dtype), ADD)
    x, other = numbers(ROWS, COLUMNS).to(dtype), numbers(ROWS, COLUMNS + 1)[:, 1:].to(dtype).contiguous()
    factor = numbers(GROUPS, 2, COLUMNS).to(dtype)[:, 1]
    expected = x.float()
    activations.add_product(expected, other.float(), factor.float())
    library.run(*addresses(x, other, factor), ROWS, COLUMNS, ctypes.c_uint(factor.stride(0)), ROWS // GROUPS)
    assert relative(x, expected) < STEPS[dtype]


@pytest.mark.parametrize(
    "dtype, frequencies, size",
    [(torch.bfloat16, torch.bfloat16, 128), (torch.bfloat16, torch.float32, 64), (torch.float16, torch.float16, 32)],
)
def test_the_kernel_norms_and_ropes(tmp_path, dtype, frequencies, size):
    library = kernel_on_the_host(
        tmp_path, kernels.NORM_ROPE, kernels.norm_rope_options(dtype, frequencies, COLUMNS), ROPE
    )
    x, weight = (3 * numbers(2 * ROWS, COLUMNS)).to(dtype), numbers(COLUMNS).to(dtype)
    turns = numbers(ROWS, COLUMNS // size, size // 2, 2, 2).to(frequencies)
    out = torch.full_like(x, torch.nan)
    library.run(*addresses(x, weight, turns, out), 2 * ROWS, COLUMNS, ROWS, size, ctypes.c_float(1e-5))
    assert relative(out, activations.norm_rope(x, weight, turns, 1e-5)) < 2 * STEPS[dtype]


def test_norm_and_rope_are_those_of_comfy_kitchen():
    x, weight, size = numbers(6, COLUMNS).bfloat16(), numbers(COLUMNS).bfloat16(), 64
    turns = numbers(3, COLUMNS // size, size // 2, 2, 2)
    normed = torch.nn.functional.rms_norm(x, (COLUMNS,), weight, 1e-5).view(2, 3, -1, size)
    expected = comfy_kitchen.apply_rope_split_half1(normed, turns[None]).view(6, COLUMNS)
    assert relative(activations.norm_rope(x, weight, turns, 1e-5), expected) < 8e-3


def test_a_modulation_is_for_its_own_rows():
    """One group's factor and shift leave the others alone."""
    x = numbers(ROWS, COLUMNS)
    factor, shift = torch.ones(GROUPS, COLUMNS), torch.zeros(GROUPS, COLUMNS)
    factor[1], shift[1] = 2, 1
    found = activations.apply(x, Steps(factor=factor, shift=shift))
    half = ROWS // GROUPS
    assert torch.equal(found[:half], x[:half]) and torch.equal(found[half:], x[half:] * 2 + 1)
    gates = torch.zeros(ROWS, HEADS)
    gates[1, 1] = 3
    size = COLUMNS // HEADS
    gated = activations.apply(x, Steps(gates=gates))
    assert torch.equal(gated[1, size : 2 * size], 3 * x[1, size : 2 * size]) and gated.count_nonzero() == size


@pytest.mark.parametrize("arch, kinds", [("sm_75", ("int8",)), ("sm_89", KINDS), ("sm_90", KINDS)])
def test_nvrtc_builds_the_kernels(arch, kinds):
    pytest.importorskip("cuda.bindings.nvrtc")
    try:
        for kind in kinds:
            for step in (kernels.MODULATED, kernels.GATED, kernels.GELU):
                options = rotate_options(torch.float32 if arch == "sm_89" else torch.bfloat16, kind, step, True)
                assert b"hlwq_rotate" in nvrtc.compile_cubin(ROTATE, options, arch)
        options = kernels.norm_rope_options(torch.bfloat16, torch.bfloat16, 4096)
        assert b"hlwq_norm_rope" in nvrtc.compile_cubin(kernels.NORM_ROPE, options, arch)
        for dtype in STEPS:
            options = kernels.add_product_options(dtype)
            assert b"hlwq_add_product" in nvrtc.compile_cubin(kernels.ADD_PRODUCT, options, arch)
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
    kernels.prove(device, kind)
    assert fast.rotate_after is not None and fast.add_product is not None
    for name, dtype, columns in ((n, d, c) for n in NAMES for d in eight_bit.INPUTS for c in (640, 1344, 15360)):
        steps = steps_of(name, dtype, 1000, columns)
        moved = steps.to(device)
        x = numbers(1000, columns).to(dtype)
        made, whole = fast.rotate_after(x.to(device), moved, True)
        expected = activations.apply(x, steps)
        assert whole is not None and relative(whole.cpu(), expected) < 2 * STEPS[dtype]
        assert relative(made.dense().cpu()[:, :columns], eight_bit.rotate(expected, kind).dense()[:, :columns]) < 2e-2
    x, other, factor = (numbers(rows, 4096).bfloat16().to(device) for rows in (1000, 1000, 10))
    expected = x.float()
    activations.add_product(expected, other.float(), factor.float())
    fast.add_product(x, other, factor)
    assert relative(x, expected) < 4e-3
    assert fast.norm_rope is not None
    for dtype, frequencies, columns in ((torch.bfloat16, torch.bfloat16, 4096), (torch.float16, torch.float32, 2048)):
        x, weight = numbers(300, columns).to(dtype), numbers(columns).to(dtype)
        turns = numbers(150, 32, columns // 64, 2, 2).to(frequencies)
        found = fast.norm_rope(x.to(device), weight.to(device), turns.to(device), 1e-5)
        assert relative(found.cpu(), activations.norm_rope(x, weight, turns, 1e-5)) < 2 * STEPS[dtype]
