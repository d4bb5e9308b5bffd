// One kernel call as a stream's tracer sees it.
#pragma once

#include <cstdint>
#include <vector>

#include "src/core/cost.hpp"

namespace weft {

/// Matrix products of one shape inside a kernel call, as they reach the BLAS:
/// c[m, n] = op(a)[m, k] op(b)[k, n], or c += with `accumulate`.
struct Product {
  int64_t m = 0, n = 0, k = 0;
  bool transpose_a = false;
  bool transpose_b = false;
  bool accumulate = false;
  double flops = 0;  // of all products of this shape, what a mask hides left out

  /// How many products that is; a fraction where a mask hides part of one.
  double count() const {
    return flops > 0 ? flops / (2.0 * static_cast<double>(m) * static_cast<double>(n) *
                                static_cast<double>(k))
                     : 0;
  }
};

struct KernelCall {
  const char* name = "";
  Cost cost;
  std::vector<Product> products = {};  // none: a kernel of loops
};

/// The products of a call, from its args struct: kernels that have some overload this.
template <class Args>
std::vector<Product> products(const Args&) {
  return {};
}

}  // namespace weft
