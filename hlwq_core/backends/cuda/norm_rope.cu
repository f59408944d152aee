// Queries or keys of an attention: root-mean-square norm over all heads, then rotary embedding of each head's halves; rounded once.
// One grid block a row, 16 columns a thread; a head's size is a multiple of 32, at most 512. Defined by the caller, besides what
// packed.cuh needs:
//   FREQUENCIES  0 float32, 1 as the rows
//   COLUMNS      of a row, a multiple of 32 and of a head's size

#include "packed.cuh"
#include "columns.cuh"

#if FREQUENCIES == 0
typedef float frequency_t;
#else
typedef value_t frequency_t;
#endif

// A row's matrices go through shared memory: read in turn by all threads, and then by those that need them. Those of 16 columns
// lie together, a vector apart from the next, so that threads meet in few banks.
#define CHUNK (16 * 4 * (unsigned int)sizeof(frequency_t))
#define CHUNKS (COLUMNS / 2 / 16)

// x            [rows, columns]
// weight       [columns]
// frequencies  [tokens, heads, size / 2, 2, 2]: a rotation of the column and the one half a head further
// out          [rows, columns]
extern "C" __global__ void __launch_bounds__(1024) hlwq_norm_rope(
    const value_t* __restrict__ x, const value_t* __restrict__ weight, const frequency_t* __restrict__ frequencies,
    value_t* __restrict__ out, unsigned int tokens, unsigned int size, float epsilon) {
    const unsigned int columns = COLUMNS;
    const size_t row = blockIdx.x;
    const unsigned int column = threadIdx.x * PER_LANE;
    const int lane = threadIdx.x & 31;

    __align__(16) __shared__ unsigned char turns[CHUNKS * (CHUNK + 16)];
    const Vector* source = (const Vector*)(frequencies + (row % tokens) * (size_t)(columns * 2));
    for (unsigned int i = threadIdx.x; i < CHUNKS * (CHUNK / 16); i += blockDim.x)
        *(Vector*)(turns + i / (CHUNK / 16) * (CHUNK + 16) + i % (CHUNK / 16) * 16) = source[i];

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
    const unsigned int chunk = (column / size * half + within - (upper ? half : 0)) / 16;
    const frequency_t* rotation = (const frequency_t*)(turns + chunk * (CHUNK + 16)) + (upper ? 2 : 0);
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        const float other = __shfl_xor_sync(FULL, v[i], half / PER_LANE);
        if (column < columns) {
            const float low = upper ? other : v[i], high = upper ? v[i] : other;
#if FREQUENCIES == 0
            v[i] = rotation[4 * i] * low + rotation[4 * i + 1] * high;
#else
            const unsigned int pair = *(const unsigned int*)(rotation + 4 * i);
            v[i] = widen((value_t)pair) * low + widen((value_t)(pair >> 16)) * high;
#endif
        }
    }
    if (column < columns) write_columns(out + row * columns + column, v);
}
