// Activations for weights that stay rotated: 128-point Walsh-Hadamard transform of each block, one scale a row, 8 bits.
// One grid block a row, 16 columns a thread. Defined by the caller, besides what packed.cuh needs:
//   EIGHT    0 float8 e4m3, 1 int8

#include "packed.cuh"
#include "eight_bit.cuh"

// x       [rows, columns]
// out     [rows, padded], padded = columns rounded up to 128, at most 16 * blockDim.x
// scales  float32 [rows]
extern "C" __global__ void __launch_bounds__(1024) hlwq_rotate(
    const value_t* __restrict__ x, unsigned char* __restrict__ out, float* __restrict__ scales, unsigned int columns,
    unsigned int padded) {
    const size_t row = blockIdx.x;
    const unsigned int column = threadIdx.x * PER_LANE;
    const int lane = threadIdx.x & 31;
    const value_t* source = x + row * columns + column;

    float v[PER_LANE];
    if (columns % 16 == 0 && column < columns) {
        union { value_t values[PER_LANE]; Vector vectors[sizeof(value_t)]; } whole;
#pragma unroll
        for (int i = 0; i < (int)sizeof(value_t); i++) whole.vectors[i] = ((const Vector*)source)[i];
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) v[i] = widen(whole.values[i]);
    } else {
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) v[i] = column + i < columns ? widen(source[i]) : 0.0f;
    }
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
