"""Backends agree with eager. The CUDA kernel is also run on the CPU: its source is C++ but for a handful of intrinsics."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess

import pytest
import torch

from hlwq_core import backends, ops
from hlwq_core.backends import cuda, eager
from hlwq_core.codebook import scaled_table
from hlwq_core.codec import encode
from hlwq_core.errors import InputError
from hlwq_core.packing import BITS, PACKINGS, pack, row_bytes

VARIANTS = [(bits, packing) for bits in BITS for packing in PACKINGS if packing != "nibble" or bits <= 4]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def layer(bits: int, packing: str, rows: int, in_features: int):
    made = encode(torch.randn(rows, in_features, generator=torch.Generator().manual_seed(bits)), bits)
    return pack(made.codes, bits, packing), made.norms, scaled_table("infinite", bits)


def test_choice(monkeypatch):
    monkeypatch.delenv(backends.ENVIRONMENT_VARIABLE, raising=False)
    assert backends.choose("cpu").NAME == "eager"
    assert "CUDA" in backends.unavailable_reasons("cpu")["cuda"]
    with pytest.raises(InputError, match="cannot run on cpu"):
        backends.choose("cpu", "cuda")
    with pytest.raises(InputError, match="unknown HLWQ backend"):
        backends.choose("cpu", "quick")
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "eager")
    assert backends.choose("cpu", "auto").NAME == "eager"


def test_the_operator_compiles_without_a_graph_break():
    codes, norms, table = layer(5, "msb", 8, 200)

    def double(codes, norms, table):
        return ops.decode(codes, norms, table, 5, "msb", 200, torch.float32) * 2

    compiled = torch.compile(double, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(codes, norms, table), double(codes, norms, table))
    torch.library.opcheck(torch.ops.hlwq.decode, (codes, norms, table, 5, "msb", 200, torch.float32))


SHIM = r"""
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>
#define HLWQ_HOST
#define __device__
#define __forceinline__ inline
#define __global__
#define __restrict__
#define __launch_bounds__(n)
#define __align__(n) alignas(n)
#define __shared__ static
struct Dim { unsigned int x; };
static thread_local Dim threadIdx, blockIdx;
static Dim blockDim;
static std::unique_ptr<std::barrier<>> everyone;
static float lanes[1024];
static void __syncthreads() { everyone->arrive_and_wait(); }
static float exchange(float value, unsigned source) {
    lanes[threadIdx.x] = value;
    everyone->arrive_and_wait();
    float found = lanes[(threadIdx.x & ~31u) | (source & 31u)];
    everyone->arrive_and_wait();
    return found;
}
static float __shfl_sync(unsigned, float value, unsigned source) { return exchange(value, source); }
static float __shfl_xor_sync(unsigned, float value, int mask) { return exchange(value, threadIdx.x ^ mask); }
static unsigned __float_as_uint(float f) { unsigned u; std::memcpy(&u, &f, 4); return u; }
float half_to_float(unsigned short h) { _Float16 f; std::memcpy(&f, &h, 2); return (float)f; }
unsigned short float_to_half(float f) { _Float16 g = (_Float16)f; unsigned short h; std::memcpy(&h, &g, 2); return h; }
#include SOURCE
extern "C" void run(const unsigned char* codes, const unsigned short* norms, const float* table, void* out,
                    unsigned total, unsigned num_blocks, unsigned in_features) {
    const unsigned threads = 32;
    blockDim.x = threads;
    for (unsigned b = 0; b * (threads / 8) < total; b++) {
        everyone = std::make_unique<std::barrier<>>(threads);
        std::vector<std::thread> all;
        for (unsigned t = 0; t < threads; t++)
            all.emplace_back([=] {
                threadIdx.x = t; blockIdx.x = b;
                hlwq_decode(codes, norms, table, (value_t*)out, total, num_blocks, in_features);
                everyone->arrive_and_drop();
            });
        for (auto& thread : all) thread.join();
    }
}
"""


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to run the kernel's source on the CPU")
    folder = tmp_path_factory.mktemp("kernel")
    (folder / "shim.cpp").write_text(SHIM)

    def make(bits: int, packing: str, dtype: torch.dtype):
        library = folder / f"{bits}{packing}{str(dtype)[6:]}.so"
        command = [compiler, "-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-pthread", f'-DSOURCE="{cuda.SOURCE}"']
        subprocess.run(
            [*command, *cuda.options(bits, packing, dtype), str(folder / "shim.cpp"), "-o", str(library)],
            check=True,
            timeout=120,
        )
        return ctypes.CDLL(str(library))

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


@pytest.mark.parametrize("arch", ["sm_75", "sm_89", "sm_90"])
def test_nvrtc_builds_every_variant(arch):
    pytest.importorskip("cuda.bindings.nvrtc")
    try:
        for bits, packing in VARIANTS if arch == "sm_90" else VARIANTS[:2]:
            for dtype in DTYPES:
                assert b"hlwq_decode" in cuda.compile_cubin(cuda.options(bits, packing, dtype), arch)
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


def test_row_bytes():
    assert row_bytes(2, 5, "msb") == 160 and row_bytes(2, 4, "nibble") == 128 and row_bytes(2, 6, "byte") == 256
