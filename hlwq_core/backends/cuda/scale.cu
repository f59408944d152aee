// The end of an INT8 matrix product: out = sums * (scale of the row) * (scale of the column) + bias, rounded once.
// Defined by the caller, besides what packed.cuh needs:
//   BIAS     1 adds a bias

#include "packed.cuh"

// sums           int32 [rows, columns]
// row_scales     float32 [rows]
// column_scales  float32 [columns]
// bias           [columns], of out's type
// out            [rows, columns]
extern "C" __global__ void __launch_bounds__(256) hlwq_scale(
    const int* __restrict__ sums, const float* __restrict__ row_scales, const float* __restrict__ column_scales,
    const value_t* __restrict__ bias, value_t* __restrict__ out, unsigned int columns) {
    const size_t row = blockIdx.x;
    const float row_scale = row_scales[row];
    for (unsigned int c = threadIdx.x; c < columns; c += blockDim.x) {
        const float value = (float)sums[row * columns + c] * row_scale * column_scales[c];
        out[row * columns + c] = convert(BIAS ? value + widen(bias[c]) : value);
    }
}
