#include "src/kernels/state_combine.hpp"

#include <algorithm>
#include <cmath>

namespace weft::cpu {
namespace {

template <class T>
T* row(const Tensor& t, int64_t r, int64_t k) {
  return t.as<T>() + r * t.stride[0] + k * t.stride[1];
}

/// sum += a x, element by element. std::fma, so that no compiler rounds in between for one width of
/// a loop and not for another.
template <class T>
void add_scaled(T* __restrict sum, T a, const T* __restrict x, int64_t n) {
  if (a == 0) return;
  for (int64_t i = 0; i < n; ++i) sum[i] = std::fma(a, x[i], sum[i]);
}

template <class T>
void combine(const StateCombineArgs& args) {
  const int64_t R = args.out.dim(0), K = args.out.dim(1), V = args.out.dim(2);
  const T* transition = args.transition ? args.transition.as<T>() : nullptr;
  const bool dense = args.transition.ndim == 3;
  /// Decay of row k of state r, where A is diagonal.
  const auto decay = [&](int64_t r, int64_t k) {
    switch (args.transition.ndim) {
      case 1:
        return std::exp(transition[r]);
      case 2:
        return std::exp(transition[r * K + k]);
      default:
        return T(1);
    }
  };
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t k = 0; k < K; ++k) {
      T* out = row<T>(args.out, r, k);
      if (!args.local) {
        std::fill_n(out, V, T(0));
      } else if (const T* local = row<T>(args.local, r, k); local != out) {
        std::copy_n(local, V, out);
      }
      if (!dense) {
        add_scaled(out, decay(r, k), row<T>(args.entering, r, k), V);
        continue;
      }
      const T* a = transition + r * K * K;
      for (int64_t j = 0; j < K; ++j) {
        add_scaled(out, args.transposed ? a[j * K + k] : a[k * K + j], row<T>(args.entering, r, j),
                   V);
      }
    }
  }
}

}  // namespace

void state_combine(const StateCombineArgs& args) {
  visit_float(args.out.dtype, [&](auto zero) { combine<decltype(zero)>(args); });
}

}  // namespace weft::cpu
