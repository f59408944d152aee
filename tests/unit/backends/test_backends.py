"""Backends agree with eager. The CUDA kernel is also run on the CPU: its source is C++ but for a handful of intrinsics."""

from __future__ import annotations

import ctypes
import itertools
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hlwq_core import backends
from hlwq_core.backends import cuda, eager, nvrtc, proof
from hlwq_core.codec.codec import encode
from hlwq_core.errors import InputError
from hlwq_core.format.codebook import scaled_table
from hlwq_core.format.packing import BITS, PACKINGS, pack, row_bytes
from hlwq_core.running import operators

from .host_kernel import kernel_on_the_host

VARIANTS = [(bits, packing) for bits in BITS for packing in PACKINGS if packing != "nibble" or bits <= 4]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def layer(bits: int, packing: str, rows: int, in_features: int):
    made = encode(torch.randn(rows, in_features, generator=torch.Generator().manual_seed(bits)), bits)
    return pack(made.codes, bits, packing), made.norms, scaled_table("infinite", bits)


def test_choice(monkeypatch):
    monkeypatch.delenv(backends.ENVIRONMENT_VARIABLE, raising=False)
    assert backends.choose("cpu").NAME == "eager"
    assert "CUDA" in backends.unavailable_reasons("cpu")["cuda"]
    assert "Triton" in backends.unavailable_reasons("cpu")["triton"]
    with pytest.raises(InputError, match="cannot run on cpu"):
        backends.choose("cpu", "cuda")
    with pytest.raises(InputError, match="unknown HLWQ backend"):
        backends.choose("cpu", "quick")
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "eager")
    assert backends.choose("cpu", "auto").NAME == "eager"


def test_the_operator_compiles_without_a_graph_break():
    codes, norms, table = layer(5, "msb", 8, 200)

    def double(codes, norms, table):
        return operators.decode(codes, norms, table, 5, "msb", 200, torch.float32) * 2

    compiled = torch.compile(double, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(codes, norms, table), double(codes, norms, table))
    torch.library.opcheck(torch.ops.hlwq.decode, (codes, norms, table, 5, "msb", 200, torch.float32))


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
        return kernel_on_the_host(folder, cuda.SOURCE, cuda.options(bits, packing, dtype, accumulate), RUN)

    return make


@pytest.mark.parametrize("bits, packing", VARIANTS)
def test_the_cuda_kernels_source_computes_what_eager_does(build, bits, packing):
    dtype = DTYPES[(bits + len(packing)) % 3] if bits != 5 else torch.bfloat16
    library = build(bits, packing, dtype)
    for rows, in_features in ((3, 256), (2, 200)):
        codes, norms, table = layer(bits, packing, rows, in_features)
        found = torch.zeros((rows, in_features), dtype=dtype)
        pointers = [ctypes.c_void_p(x.data_ptr()) for x in (codes, norms, table, found)]
        library.run(*pointers, norms.numel(), norms.shape[1], in_features)
        expected = eager.decode(codes, norms, table, bits, packing, in_features, torch.float32)
        step = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}[dtype]
        assert torch.allclose(found.float(), expected, rtol=step, atol=1e-5), (rows, in_features)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_cuda_kernels_source_adds_to_a_patch_with_one_rounding(build, dtype):
    library = build(5, "msb", dtype, accumulate=True)
    for rows, in_features in ((3, 256), (2, 200)):
        codes, norms, table = layer(5, "msb", rows, in_features)
        patch = torch.randn(rows, in_features, generator=torch.Generator().manual_seed(1)).to(dtype)
        found = patch.clone()
        pointers = [ctypes.c_void_p(x.data_ptr()) for x in (codes, norms, table, found)]
        library.run(*pointers, norms.numel(), norms.shape[1], in_features)
        exact = eager.decode(codes, norms, table, 5, "msb", in_features, torch.float32) + patch.float()
        step = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}[dtype]
        assert torch.allclose(found.float(), exact, rtol=step, atol=1e-5)
        by_eager = eager.decode(codes, norms, table, 5, "msb", in_features, dtype, patch.clone(), accumulate=True)
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
                cubin = nvrtc.compile_cubin(cuda.SOURCE, cuda.options(bits, packing, dtype, add), arch)
                assert cuda.FUNCTION.encode() in cubin
    except RuntimeError as error:
        if "library" in str(error).lower():
            pytest.skip(f"NVRTC is not installed: {error}")
        raise


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_agrees_with_eager(dtype):
    sizes = ((1, 128), (33, 200), (512, 4096))
    for (bits, packing), (rows, in_features) in itertools.product(VARIANTS, sizes):
        codes, norms, table = layer(bits, packing, rows, in_features)
        assert cuda._kernel(0, bits, packing, dtype) is not None
        found = cuda.decode(codes.cuda(), norms.cuda(), table.cuda(), bits, packing, in_features, dtype)
        expected = eager.decode(codes, norms, table, bits, packing, in_features, torch.float32)
        step = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}[dtype]
        assert torch.allclose(found.float().cpu(), expected, rtol=step, atol=1e-5)


TRITON = """
import os
os.environ["TRITON_INTERPRET"] = "1"
import torch
from hlwq_core.backends import proof, triton
for bits, packing in {variants}:
    for dtype, add in ((torch.bfloat16, False), (torch.float16, True)):
        proof.prove(triton.launch, torch.device("cpu"), bits, packing, dtype, add)
print("proven")
"""


def test_the_triton_kernel_computes_what_eager_does():
    """In Triton's interpreter, which a process chooses as it imports the package."""
    pytest.importorskip("triton")
    command = [sys.executable, "-c", TRITON.format(variants=VARIANTS)]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=200)
    assert done.stdout.strip() == "proven", done.stderr[-2000:]


@pytest.mark.parametrize("bits, packing", VARIANTS)
def test_a_wrong_kernel_is_not_proven(bits, packing):
    def right(codes, norms, table, bits, packing, in_features, out, accumulate):
        eager.decode(codes, norms, table, bits, packing, in_features, out.dtype, out, accumulate)

    def wrong(codes, norms, table, bits, packing, in_features, out, accumulate):
        right(codes, norms, table.flip(0), bits, packing, in_features, out, accumulate)

    for accumulate in (False, True):
        proof.prove(right, torch.device("cpu"), bits, packing, torch.bfloat16, accumulate)
        with pytest.raises(RuntimeError, match="differs from eager"):
            proof.prove(wrong, torch.device("cpu"), bits, packing, torch.bfloat16, accumulate)


def test_row_bytes():
    assert row_bytes(2, 5, "msb") == 160 and row_bytes(2, 4, "nibble") == 128 and row_bytes(2, 6, "byte") == 256
