// What the kernels share: reading packed codes, and numbers of 16 bits. Defined by the caller:
//   BITS     bits a code
//   PACKING  0 msb, 1 lsb, 2 nibble (half-block), 3 byte
//   OUTPUT   0 float32, 1 float16, 2 bfloat16: the numbers' type
//
// Eight lanes share a block of 128: each owns 16 neighbouring codes.

#define FULL 0xffffffffu
#define PER_LANE 16

#if OUTPUT == 0
typedef float value_t;
#else
typedef unsigned short value_t;
#endif

struct __align__(16) Vector { unsigned int x, y, z, w; };

#ifndef HLWQ_HOST
static __device__ __forceinline__ float half_to_float(unsigned short h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}
static __device__ __forceinline__ unsigned short float_to_half(float f) {
    unsigned short h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
#endif

static __device__ __forceinline__ value_t convert(float f) {
#if OUTPUT == 0
    return f;
#elif OUTPUT == 1
    return float_to_half(f);
#else
    unsigned int bits = __float_as_uint(f);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);  // to nearest, ties to even
#endif
}

static __device__ __forceinline__ float widen(value_t value) {
#if OUTPUT == 0
    return value;
#elif OUTPUT == 1
    return half_to_float(value);
#else
    return __uint_as_float((unsigned int)value << 16);
#endif
}

#if OUTPUT != 0
// Two neighbours in one register, the first one low. Ampere converts pairs by itself.
static __device__ __forceinline__ unsigned int convert_pair(float first, float second) {
#if !defined(HLWQ_HOST) && __CUDA_ARCH__ >= 800
    unsigned int pair;
#if OUTPUT == 1
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
#else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
#endif
    return pair;
#else
    return (unsigned int)convert(first) | (unsigned int)convert(second) << 16;
#endif
}
#endif

// The 128-point Walsh-Hadamard transform (not normalized) of a block: four stages within a lane's registers, three across lanes.
static __device__ __forceinline__ void transform(float* v, int lane) {
#pragma unroll
    for (int stride = 1; stride < PER_LANE; stride *= 2) {
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) {
            if ((i & stride) == 0) {
                const float a = v[i], b = v[i + stride];
                v[i] = a + b;
                v[i + stride] = a - b;
            }
        }
    }
#pragma unroll
    for (int stride = 1; stride < 8; stride *= 2) {
        const float sign = (lane & stride) ? -1.0f : 1.0f;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) v[i] = __shfl_xor_sync(FULL, v[i], stride) + sign * v[i];
    }
}

#ifdef BITS
#define WORDS (PACKING >= 2 ? 8 : BITS)

// The 16-bit words that hold a lane's codes.
static __device__ __forceinline__ void read_words(
    const unsigned char* codes, size_t block, int lane, unsigned int* words) {
#if PACKING == 3
    const unsigned char* start = codes + block * 128 + lane * 16;
#elif PACKING == 2
    const unsigned char* start = codes + block * 64 + (lane & 3) * 16;
#else
    const unsigned char* start = codes + block * (16 * BITS) + lane * (2 * BITS);
#endif
#pragma unroll
    for (int i = 0; i < WORDS; i++) {
        const unsigned int word = ((const unsigned short*)start)[i];
        words[i] = PACKING == 0 ? ((word & 0xffu) << 8) | (word >> 8) : word;
    }
}

// Code i of the 16 that a lane owns, out of those words.
static __device__ __forceinline__ unsigned int code_at(const unsigned int* words, int i, int lane) {
#if PACKING == 3
    return (words[i / 2] >> (8 * (i % 2))) & 0xffu;
#elif PACKING == 2
    return (words[i / 2] >> (8 * (i % 2) + (lane >= 4 ? 4 : 0))) & 0xfu;
#else
    const int first = i * BITS / 16, offset = i * BITS % 16;
    const bool two = offset + BITS > 16;
#if PACKING == 0
    const unsigned int pair = (words[first] << 16) | (two ? words[first + 1] : 0u);
    return (pair >> (32 - offset - BITS)) & ((1u << BITS) - 1u);
#else
    const unsigned int pair = words[first] | (two ? words[first + 1] << 16 : 0u);
    return (pair >> offset) & ((1u << BITS) - 1u);
#endif
#endif
}

// A table of up to 32 levels lies one level a lane and is read by shuffle: random reads of shared memory would meet in
// the same banks. `DECLARE_LEVELS(table)` once at the kernel's start, by all threads; `LEVEL(code)` by whole warps.
#if BITS <= 5
#define DECLARE_LEVELS(table) const float own_level = table[(threadIdx.x & 31) & ((1 << BITS) - 1)]
#define LEVEL(code) __shfl_sync(FULL, own_level, code)
#else
#define DECLARE_LEVELS(table)                                                               \
    __shared__ float shared_levels[1 << BITS];                                              \
    for (int i = threadIdx.x; i < (1 << BITS); i += blockDim.x) shared_levels[i] = table[i]; \
    __syncthreads()
#define LEVEL(code) shared_levels[code]
#endif
#endif
