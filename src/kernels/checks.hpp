// What kernels ask of their tensors, and the bytes that a cost counts.
#pragma once

#include <initializer_list>

#include "src/tensor/tensor.hpp"

namespace weft {

/// Bytes of all these; absent tensors have none.
inline double bytes(std::initializer_list<const Tensor*> tensors) {
  double sum = 0;
  for (const Tensor* t : tensors) sum += *t ? static_cast<double>(t->nbytes()) : 0.0;
  return sum;
}

inline void check_same(const Tensor& a, const Tensor& b) {
  WEFT_CHECK(same_shape(a, b) && a.dtype == b.dtype, a.text(), " and ", b.text());
}

/// The same shape, of the accumulator type.
inline void check_wide(const Tensor& wide, const Tensor& like) {
  WEFT_CHECK(same_shape(wide, like) && wide.dtype == accumulator_of(like.dtype), wide.text(),
             " for ", like.text());
}

/// A parameter's gradient is of its type, or adds up in the accumulator type.
inline void check_gradient(const Tensor& gradient, DType dtype) {
  WEFT_CHECK(gradient.dtype == dtype || gradient.dtype == accumulator_of(dtype), gradient.text(),
             " for ", name(dtype));
}

inline void check_contiguous(std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* t : tensors) WEFT_CHECK(t->contiguous(), t->text());
}

}  // namespace weft
