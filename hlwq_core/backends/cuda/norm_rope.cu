// Queries or keys of an attention: root-mean-square norm over all heads, then rotary embedding of each head's halves; rounded once.
// One grid block a row, 16 columns a thread; a head's size is a multiple of 32, at most 512. Defined by the caller, besides what
// packed.cuh needs:
//   FREQUENCIES  0 float32, 1 as the rows

#include "packed.cuh"
#include "columns.cuh"

#if FREQUENCIES == 0
typedef float frequency_t;
#define FREQUENCY(f) (f)
#else
typedef value_t frequency_t;
#define FREQUENCY(f) widen(f)
#endif

// x            [rows, columns], columns a multiple of 32 and of a head's size
// weight       [columns]
// frequencies  [tokens, heads, size / 2, 2, 2]: a rotation of the column and the one half a head further
// out          [rows, columns]
extern "C" __global__ void __launch_bounds__(1024) hlwq_norm_rope(
    const value_t* __restrict__ x, const value_t* __restrict__ weight, const frequency_t* __restrict__ frequencies,
    value_t* __restrict__ out, unsigned int columns, unsigned int tokens, unsigned int size, float epsilon) {
    const size_t row = blockIdx.x;
    const unsigned int column = threadIdx.x * PER_LANE;
    const int lane = threadIdx.x & 31;

    float v[PER_LANE];
    read_columns(x + row * columns, column, columns, v);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) sum += v[i] * v[i];
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(FULL, sum, mask);
    __shared__ float of_warps[32];
    if (lane == 0) of_warps[threadIdx.x >> 5] = sum;
    __syncthreads();
    sum = 0.0f;
    for (unsigned int w = 0; w < (blockDim.x >> 5); w++) sum += of_warps[w];
    const float inverse = 1.0f / sqrtf(sum / columns + epsilon);

    if (column < columns) {
        float factor[PER_LANE];
        read_columns(weight, column, columns, factor);
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) v[i] *= inverse * factor[i];
    }
    const unsigned int half = size / 2;
    const unsigned int within = column % size;
    const bool upper = within >= half;
    const frequency_t* rotation =
        frequencies + ((row % tokens) * (columns / size) + column / size) * (half * 4) + (within - (upper ? half : 0)) * 4;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        const float other = __shfl_xor_sync(FULL, v[i], half / PER_LANE);
        if (column < columns) {
            const float low = upper ? other : v[i], high = upper ? v[i] : other;
            const frequency_t* pair = rotation + i * 4 + (upper ? 2 : 0);
            v[i] = FREQUENCY(pair[0]) * low + FREQUENCY(pair[1]) * high;
        }
    }
    if (column < columns) write_columns(out + row * columns + column, v);
}
