// x += other * factor, in float32 and rounded once: a block's residual with its gate. One grid block a row, 16 columns a thread.

#include "packed.cuh"
#include "columns.cuh"

// x       [rows, columns], columns a multiple of 16
// other   [rows, columns]
// factor  [groups, columns], a row `stride` apart, for `each` rows each
extern "C" __global__ void __launch_bounds__(1024) hlwq_add_product(
    value_t* __restrict__ x, const value_t* __restrict__ other, const value_t* __restrict__ factor, unsigned int columns,
    unsigned int stride, unsigned int each) {
    const size_t row = blockIdx.x;
    const unsigned int column = threadIdx.x * PER_LANE;
    if (column >= columns) return;
    float v[PER_LANE], o[PER_LANE], f[PER_LANE];
    read_columns(x + row * columns, column, columns, v);
    read_columns(other + row * columns, column, columns, o);
    read_columns(factor + (size_t)(blockIdx.x / each) * stride, column, columns, f);
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) v[i] += o[i] * f[i];
    write_columns(x + row * columns + column, v);
}
