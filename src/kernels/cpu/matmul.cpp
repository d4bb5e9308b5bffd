#include "src/kernels/matmul.hpp"

#include <algorithm>
#include <vector>

#ifdef WEFT_BLAS
#include <cblas.h>
#endif

namespace weft::cpu {
namespace {

#ifndef WEFT_BLAS
// Plain loops with the summation order of the formula: for sanitizers, which cannot see into a
// BLAS, and as a second opinion on one. The operands are read, each element once, by `packed`, and
// the m n k products run on its copies, which nobody else sees: there a sanitizer would only be
// twenty times slower.

/// rows x columns elements of x, or of its transpose, one row after the other.
template <class T>
std::vector<T> packed(bool transpose, int64_t rows, int64_t columns, const T* x, int64_t ld) {
  std::vector<T> out;
  out.reserve(rows * columns);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) out.push_back(transpose ? x[j * ld + i] : x[i * ld + j]);
  }
  return out;
}

template <class T>
[[gnu::no_sanitize("address", "thread", "undefined")]] void add_scaled(int64_t n, T scale,
                                                                       const T* x, T* y) {
  for (int64_t j = 0; j < n; ++j) y[j] += scale * x[j];
}

template <class T>
void loop_gemm(const Gemm<T>& g) {
  const std::vector<T> a = packed(g.transpose_a, g.m, g.k, g.a, g.lda);
  const std::vector<T> b = packed(g.transpose_b, g.k, g.n, g.b, g.ldb);
  std::vector<T> sums(g.n);
  for (int64_t i = 0; i < g.m; ++i) {
    std::fill(sums.begin(), sums.end(), T(0));
    for (int64_t p = 0; p < g.k; ++p) {
      add_scaled(g.n, a[i * g.k + p], b.data() + p * g.n, sums.data());
    }
    for (int64_t j = 0; j < g.n; ++j) {
      T& c = g.c[i * g.ldc + j];
      c = g.alpha * sums[j] + (g.beta == 0 ? T(0) : g.beta * c);
    }
  }
}
#endif

template <class T>
void typed_matmul(const MatmulArgs& args) {
  const int64_t k = args.a.dim(args.transpose_a ? 0 : 1);
  gemm(Gemm<T>{.transpose_a = args.transpose_a,
               .transpose_b = args.transpose_b,
               .m = args.c.dim(0),
               .n = args.c.dim(1),
               .k = k,
               .alpha = static_cast<T>(args.alpha),
               .a = args.a.as<T>(),
               .lda = args.a.stride[0],
               .b = args.b.as<T>(),
               .ldb = args.b.stride[0],
               .beta = args.accumulate ? T(1) : T(0),
               .c = args.c.as<T>(),
               .ldc = args.c.stride[0]});
}

}  // namespace

#ifdef WEFT_BLAS

void set_blas_threads(int threads) {
  openblas_set_num_threads(threads);
}

void gemm(const Gemm<float>& g) {
  if (g.m == 0 || g.n == 0) return;
  cblas_sgemm(CblasRowMajor, g.transpose_a ? CblasTrans : CblasNoTrans,
              g.transpose_b ? CblasTrans : CblasNoTrans, g.m, g.n, g.k, g.alpha, g.a, g.lda, g.b,
              g.ldb, g.beta, g.c, g.ldc);
}

void gemm(const Gemm<double>& g) {
  if (g.m == 0 || g.n == 0) return;
  cblas_dgemm(CblasRowMajor, g.transpose_a ? CblasTrans : CblasNoTrans,
              g.transpose_b ? CblasTrans : CblasNoTrans, g.m, g.n, g.k, g.alpha, g.a, g.lda, g.b,
              g.ldb, g.beta, g.c, g.ldc);
}

#else

void set_blas_threads(int) {}
void gemm(const Gemm<float>& g) {
  loop_gemm(g);
}
void gemm(const Gemm<double>& g) {
  loop_gemm(g);
}

#endif

void matmul(const MatmulArgs& args) {
  visit_float(args.c.dtype, [&](auto zero) { typed_matmul<decltype(zero)>(args); });
}

}  // namespace weft::cpu
