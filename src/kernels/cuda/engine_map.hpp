// What the copy engine of a Hopper GPU has to know of a tensor.
#pragma once

#include <cuda.h>

#include "src/tensor/tensor.hpp"

namespace weft::cuda {

/// Of [B, T, heads, D] in bf16, boxes of 64 columns of one head and `rows` tokens, swizzled by 128
/// bytes; what a box has outside the tensor is zero. Dimensions from the innermost: column, head,
/// token, sequence. Rows start on 16 bytes.
CUtensorMap engine_map(const Tensor& heads, int rows);

/// Of `count` records of `bytes` side by side, boxes of one record; dimension 2 is its number.
/// Records start on 16 bytes; `bytes` is a multiple of 32 up to 2048.
CUtensorMap record_map(void* records, int64_t count, int bytes);

}  // namespace weft::cuda
