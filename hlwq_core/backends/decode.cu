// Decodes packed HLWQ rows: look-up, 128-point Walsh-Hadamard transform, norm, rounding.
// Built at run time by NVRTC; no header is needed. Defined by the caller:
//   BITS     bits a code
//   PACKING  0 msb, 1 lsb, 2 nibble (half-block), 3 byte
//   OUTPUT   0 float32, 1 float16, 2 bfloat16
//
// Eight lanes share a block of 128: each owns 16 neighbouring codes. Four stages of the transform run within a lane's
// registers, three across lanes by shuffles. A table of up to 32 levels lies one level a lane and is read by shuffle:
// random reads of shared memory would meet in the same banks.

#define FULL 0xffffffffu
#define PER_LANE 16
#define WORDS (PACKING >= 2 ? 8 : BITS)

#if OUTPUT == 0
typedef float value_t;
#else
typedef unsigned short value_t;
#endif

struct __align__(16) Vector { unsigned int x, y, z, w; };

#ifdef HLWQ_HOST
float half_to_float(unsigned short h);
unsigned short float_to_half(float f);
#else
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

// Code i of the 16 that a lane owns, out of its 16-bit words.
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

// codes   [total, bytes of a block], rows after one another
// norms   float16 [total]
// table   float32 [2^BITS], the codebook / sqrt(128)
// out     [rows, in_features]
extern "C" __global__ void __launch_bounds__(256) hlwq_decode(
    const unsigned char* __restrict__ codes, const unsigned short* __restrict__ norms, const float* __restrict__ table,
    value_t* __restrict__ out, unsigned int total, unsigned int num_blocks, unsigned int in_features) {
    const unsigned int thread = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned int block = thread >> 3;
    const int lane = thread & 7;
    const bool active = block < total;

#if BITS <= 5
    const float level = table[(threadIdx.x & 31) & ((1 << BITS) - 1)];
#else
    __shared__ float levels[1 << BITS];
    for (int i = threadIdx.x; i < (1 << BITS); i += blockDim.x) levels[i] = table[i];
    __syncthreads();
#endif

    unsigned int words[WORDS];
    float norm = 0.0f;
    if (active) {
#if PACKING == 3
        const unsigned char* start = codes + (size_t)block * 128 + lane * 16;
#elif PACKING == 2
        const unsigned char* start = codes + (size_t)block * 64 + (lane & 3) * 16;
#else
        const unsigned char* start = codes + (size_t)block * (16 * BITS) + lane * (2 * BITS);
#endif
#pragma unroll
        for (int i = 0; i < WORDS; i++) {
            const unsigned int word = ((const unsigned short*)start)[i];
            words[i] = PACKING == 0 ? ((word & 0xffu) << 8) | (word >> 8) : word;
        }
        norm = half_to_float(norms[block]) * 0.08838834764831845f;  // 1 / sqrt(128), of the normalized transform
    } else {
#pragma unroll
        for (int i = 0; i < WORDS; i++) words[i] = 0;
    }

    float v[PER_LANE];
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
#if BITS <= 5
        v[i] = __shfl_sync(FULL, level, code_at(words, i, lane));
#else
        v[i] = levels[code_at(words, i, lane)];
#endif
    }

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
    if (!active) return;

    const unsigned int row = block / num_blocks;
    const unsigned int column = (block - row * num_blocks) * 128 + lane * PER_LANE;
    value_t* target = out + (size_t)row * in_features + column;
    if (in_features % 128 == 0) {
        union { value_t values[PER_LANE]; Vector vectors[sizeof(value_t)]; } whole;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) whole.values[i] = convert(v[i] * norm);
#pragma unroll
        for (int i = 0; i < (int)sizeof(value_t); i++) ((Vector*)target)[i] = whole.vectors[i];
    } else {
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
            if (column + i < in_features) target[i] = convert(v[i] * norm);
    }
}
