// One head of a [B, T, heads, D] tensor.
#pragma once

#include "src/tensor/tensor.hpp"

namespace weft::cpu {

/// Strided [B, T, heads, D] memory of one (batch, head): row t is at data + t * step. Of a
/// [B, T, heads] tensor, rows of one number.
template <class T>
struct Rows {
  T* data;
  int64_t step;

  Rows(const Tensor& t, int64_t b, int64_t h)
      : data(t.as<T>() + b * t.stride[0] + h * t.stride[2]), step(t.stride[1]) {}
  T* row(int64_t t) const { return data + t * step; }
};

}  // namespace weft::cpu
