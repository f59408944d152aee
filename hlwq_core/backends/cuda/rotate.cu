// Activations for weights that stay rotated: 128-point Walsh-Hadamard transform of each block, one scale a row, 8 bits.
// One grid block a row, 16 columns a thread. Defined by the caller, besides what packed.cuh needs:
//   EIGHT    0 float8 e4m3, 1 int8
//   STEP     what comes first: 0 nothing, 1 modulated, 2 gated, 3 GELU (activations.py)
//   DENSE    1 writes the activations themselves as well; only with a step, and columns a multiple of 16

#include "packed.cuh"
#include "eight_bit.cuh"
#include "columns.cuh"

#if STEP == 3
// By tanh, as x / (1 + exp(-2u)).
static __device__ __forceinline__ float gelu(float x) {
    const float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
#ifdef HLWQ_HOST
    return x / (1.0f + expf(-2.0f * u));
#else
    return x * __frcp_rn(1.0f + __expf(-2.0f * u));
#endif
}
#endif

// x       [rows, columns]
// out     [rows, padded], padded = columns rounded up to 128, at most 16 * blockDim.x
// scales  float32 [rows]
// first   STEP 1: factors [groups, columns], a row `first_stride` apart; STEP 2: gates [rows, columns / each]
// second  STEP 1: shifts [groups, columns], a row `second_stride` apart
// each    STEP 1: rows of a group; STEP 2: columns of a head, a multiple of 16
// dense   [rows, columns]
extern "C" __global__ void __launch_bounds__(1024) hlwq_rotate(
    const value_t* __restrict__ x, unsigned char* __restrict__ out, float* __restrict__ scales, unsigned int columns,
    unsigned int padded
#if STEP != 0
    , const value_t* __restrict__ first, const value_t* __restrict__ second, unsigned int first_stride,
    unsigned int second_stride, unsigned int each, value_t* __restrict__ dense
#endif
    ) {
    const size_t row = blockIdx.x;
    const unsigned int column = threadIdx.x * PER_LANE;
    const int lane = threadIdx.x & 31;

    float v[PER_LANE];
    read_columns(x + row * columns, column, columns, v);
#if STEP == 1
    if (column < columns) {
        const size_t group = blockIdx.x / each;
        float factor[PER_LANE], shift[PER_LANE];
        read_columns(first + group * first_stride, column, columns, factor);
        read_columns(second + group * second_stride, column, columns, shift);
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) v[i] = v[i] * factor[i] + shift[i];
    }
#elif STEP == 2
    if (column < columns) {
        const float gate = widen(first[row * (columns / each) + column / each]);
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) v[i] *= gate;
    }
#elif STEP == 3
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) v[i] = gelu(v[i]);
#endif
#if STEP != 0 && DENSE
    if (column < columns) write_columns(dense + row * columns + column, v);
#endif
    transform(v, lane & 7);

    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        v[i] *= 0.08838834764831845f;  // 1 / sqrt(128)
        largest = fmaxf(largest, fabsf(v[i]));
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, __shfl_xor_sync(FULL, largest, mask));
    __shared__ float of_warps[32];
    if (lane == 0) of_warps[threadIdx.x >> 5] = largest;
    __syncthreads();
    for (unsigned int w = 0; w < (blockDim.x >> 5); w++) largest = fmaxf(largest, of_warps[w]);

    const float scale = largest / LIMIT;
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    if (threadIdx.x == 0) scales[row] = scale;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) v[i] *= inverse;
    if (column < padded) *(Vector*)(out + row * padded + column) = to_eight_bits(v);
}
