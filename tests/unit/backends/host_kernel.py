"""Runs a CUDA kernel's source on the CPU: it is C++ but for a handful of intrinsics, which stand here as threads and barriers."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

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
static float __uint_as_float(unsigned u) { float f; std::memcpy(&f, &u, 4); return f; }
static unsigned __float_as_uint(float f) { unsigned u; std::memcpy(&u, &f, 4); return u; }
float half_to_float(unsigned short h) { _Float16 f; std::memcpy(&f, &h, 2); return (float)f; }
unsigned short float_to_half(float f) { _Float16 g = (_Float16)f; unsigned short h; std::memcpy(&h, &g, 2); return h; }
static unsigned to_e4m3(float f) {
    const unsigned sign = std::signbit(f) ? 0x80 : 0;
    f = std::fmin(std::fabs(f), 448.0f);
    int exponent = f > 0 ? std::max(std::ilogb(f), -6) : -6;
    float steps = std::nearbyint(std::ldexp(f, 3 - exponent));  // 8 to 16 of them, fewer where subnormal
    if (steps == 16) { exponent++; steps = 8; }
    return sign | (steps < 8 ? (unsigned)steps : ((unsigned)(exponent + 7) << 3) + (unsigned)steps - 8);
}
static unsigned to_e4m3_pair(float low, float high) { return to_e4m3(low) | to_e4m3(high) << 8; }
template <typename Kernel> static void launch(unsigned blocks, unsigned threads, Kernel kernel) {
    blockDim.x = threads;
    for (unsigned b = 0; b < blocks; b++) {
        everyone = std::make_unique<std::barrier<>>(threads);
        std::vector<std::thread> all;
        for (unsigned t = 0; t < threads; t++)
            all.emplace_back([=] {
                threadIdx.x = t; blockIdx.x = b;
                kernel();
                everyone->arrive_and_drop();
            });
        for (auto& thread : all) thread.join();
    }
}
#include SOURCE
"""


def kernel_on_the_host(folder: Path, source: Path, options: list[str], run: str) -> ctypes.CDLL:
    """Compile a kernel for the CPU with a function `run` (C++, which calls `launch`); skips where there is no g++."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to run the kernel's source on the CPU")
    name = hashlib.sha256(" ".join([source.name, *options, run]).encode()).hexdigest()[:16]
    code, library = folder / f"{name}.cpp", folder / f"{name}.so"
    code.write_text(SHIM + run)
    command = [compiler, "-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-pthread", f'-DSOURCE="{source}"']
    subprocess.run([*command, *options, str(code), "-o", str(library)], check=True, timeout=120)
    return ctypes.CDLL(str(library))
