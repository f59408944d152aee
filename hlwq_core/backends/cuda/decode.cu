// Decodes packed HLWQ rows: look-up, 128-point Walsh-Hadamard transform, norm, rounding. Built at run time by NVRTC.
// Defined by the caller, besides what packed.cuh needs:
//   ADD      1 adds to what `out` holds (a patch of the weight) before the one rounding

#include "packed.cuh"

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
    DECLARE_LEVELS(table);

    unsigned int words[WORDS];
    float norm = 0.0f;
    if (active) {
        read_words(codes, block, lane, words);
        norm = half_to_float(norms[block]) * 0.08838834764831845f;  // 1 / sqrt(128), of the normalized transform
    } else {
#pragma unroll
        for (int i = 0; i < WORDS; i++) words[i] = 0;
    }
    float v[PER_LANE];
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) v[i] = LEVEL(code_at(words, i, lane));
    transform(v, lane);
    if (!active) return;

    const unsigned int row = block / num_blocks;
    const unsigned int column = (block - row * num_blocks) * 128 + lane * PER_LANE;
    value_t* target = out + (size_t)row * in_features + column;
    if (in_features % 128 == 0) {
        Vector* vectors = (Vector*)target;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) v[i] *= norm;
#if ADD
        union { value_t values[PER_LANE]; Vector vectors[sizeof(value_t)]; } held;
#pragma unroll
        for (int i = 0; i < (int)sizeof(value_t); i++) held.vectors[i] = vectors[i];
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) v[i] += widen(held.values[i]);
#endif
#if OUTPUT == 0
#pragma unroll
        for (int i = 0; i < PER_LANE; i += 4) vectors[i / 4] = *(Vector*)&v[i];
#else
#pragma unroll
        for (int i = 0; i < PER_LANE; i += 8)
            vectors[i / 8] = {convert_pair(v[i], v[i + 1]), convert_pair(v[i + 2], v[i + 3]),
                              convert_pair(v[i + 4], v[i + 5]), convert_pair(v[i + 6], v[i + 7])};
#endif
    } else {
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
            if (column + i < in_features) target[i] = convert(ADD ? v[i] * norm + widen(target[i]) : v[i] * norm);
    }
}
