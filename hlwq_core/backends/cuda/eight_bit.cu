// Packed rows to 8 bits with one scale a row, still rotated: look-up, norm, rounding; no transform. One warp a row.
// Defined by the caller, besides what packed.cuh needs:
//   EIGHT    0 float8 e4m3, 1 int8

#include "packed.cuh"
#include "eight_bit.cuh"

// codes   [rows, num_blocks, bytes of a block]
// norms   float16 [rows, num_blocks]
// table   float32 [2^BITS], the codebook / sqrt(128); `peak` is its largest magnitude
// out     [rows, num_blocks * 128]
// scales  float32 [rows]
extern "C" __global__ void __launch_bounds__(256) hlwq_eight_bit(
    const unsigned char* __restrict__ codes, const unsigned short* __restrict__ norms, const float* __restrict__ table,
    unsigned char* __restrict__ out, float* __restrict__ scales, unsigned int rows, unsigned int num_blocks, float peak) {
    const unsigned int row = (blockIdx.x * blockDim.x + threadIdx.x) >> 5;
    const int lane = threadIdx.x & 31;
    const bool active = row < rows;
    const size_t first = (size_t)row * num_blocks;
    DECLARE_LEVELS(table);

    float largest = 0.0f;
    for (unsigned int b = lane; active && b < num_blocks; b += 32) largest = fmaxf(largest, half_to_float(norms[first + b]));
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, __shfl_xor_sync(FULL, largest, mask));
    const float scale = largest * peak / LIMIT;
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    if (active && lane == 0) scales[row] = scale;

    for (unsigned int start = 0; start < num_blocks; start += 4) {  // a warp has four blocks at a time
        const unsigned int b = start + lane / 8;
        const bool inside = active && b < num_blocks;
        unsigned int words[WORDS];
        float factor = 0.0f;
        if (inside) {
            read_words(codes, first + b, lane & 7, words);
            factor = half_to_float(norms[first + b]) * inverse;
        } else {
#pragma unroll
            for (int i = 0; i < WORDS; i++) words[i] = 0;
        }
        float v[PER_LANE];
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) v[i] = LEVEL(code_at(words, i, lane & 7)) * factor;
        if (inside) *(Vector*)(out + (first + b) * 128 + (lane & 7) * PER_LANE) = to_eight_bits(v);
    }
}
