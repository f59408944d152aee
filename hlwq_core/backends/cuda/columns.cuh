// A thread's 16 neighbouring columns of a row of numbers.

// Columns from `column` on, 0 behind the last; whole vectors where `columns` is a multiple of 16.
static __device__ __forceinline__ void read_columns(
    const value_t* __restrict__ row, unsigned int column, unsigned int columns, float* v) {
    const value_t* source = row + column;
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
}

// 16 columns, aligned to vectors.
static __device__ __forceinline__ void write_columns(value_t* target, const float* v) {
    Vector* vectors = (Vector*)target;
#if OUTPUT == 0
#pragma unroll
    for (int i = 0; i < PER_LANE; i += 4) vectors[i / 4] = *(const Vector*)&v[i];
#else
#pragma unroll
    for (int i = 0; i < PER_LANE; i += 8)
        vectors[i / 8] = {convert_pair(v[i], v[i + 1]), convert_pair(v[i + 2], v[i + 3]),
                          convert_pair(v[i + 4], v[i + 5]), convert_pair(v[i + 6], v[i + 7])};
#endif
}
