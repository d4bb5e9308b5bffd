// Matrix products.
#pragma once

#include "src/core/cost.hpp"
#include "src/core/device.hpp"
#include "src/tensor/tensor.hpp"

namespace weft {

/// c = alpha op(a) op(b), or c += with `accumulate`. All of one dtype, 2-D, rows of any stride; c
/// may be of the accumulator type: gradients of bf16 weights add up in f32.
struct MatmulArgs {
  Tensor c;  // [m, n]
  Tensor a;  // [m, k], or [k, m] when transposed
  Tensor b;  // [k, n], or [n, k] when transposed
  bool transpose_a = false;
  bool transpose_b = false;
  bool accumulate = false;
  double alpha = 1.0;
};
Cost cost(const MatmulArgs& args);
std::vector<Product> products(const MatmulArgs& args);
void matmul(const MatmulArgs& args, Stream& stream);

namespace cpu {
void matmul(const MatmulArgs& args);

/// One BLAS thread a rank. Called before ranks start; ranks are the parallelism.
void set_blas_threads(int threads);

/// c[m, n] = alpha op(a) op(b) + beta c on raw rows, for kernels made of small products. Row-major;
/// ld* are the row strides in elements.
template <class T>
struct Gemm {
  bool transpose_a, transpose_b;
  int64_t m, n, k;
  T alpha;
  const T* a;
  int64_t lda;
  const T* b;
  int64_t ldb;
  T beta;
  T* c;
  int64_t ldc;
};
void gemm(const Gemm<float>& g);
void gemm(const Gemm<double>& g);
}  // namespace cpu

namespace cuda {
void matmul(const MatmulArgs& args, Stream& stream);
}  // namespace cuda

}  // namespace weft
