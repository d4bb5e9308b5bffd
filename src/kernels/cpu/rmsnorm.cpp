#include <cmath>

#include "src/kernels/cpu/vector_math.hpp"
#include "src/kernels/pointwise.hpp"

namespace weft::cpu {

void rmsnorm_forward(const RmsNormArgs& args) {
  visit_float(args.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t width = args.x.dim(1);
    const T* weight = args.weight.as<T>();
    for (int64_t r = 0; r < args.x.dim(0); ++r) {
      const T* x = args.x.as<T>() + r * args.x.stride[0];
      T* y = args.y.as<T>() + r * args.y.stride[0];
      const T squares = sum_of<T>(width, [&](int64_t c) { return x[c] * x[c]; });
      const T rstd = 1 / std::sqrt(squares / width + static_cast<T>(args.eps));
      args.rstd.as<T>()[r] = rstd;
      for (int64_t c = 0; c < width; ++c) y[c] = x[c] * rstd * weight[c];
    }
  });
}

void rmsnorm_backward(const RmsNormGradArgs& args) {
  visit_float(args.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t width = args.x.dim(1);
    const T* weight = args.weight.as<T>();
    T* __restrict dweight = args.dweight.as<T>();
    for (int64_t r = 0; r < args.x.dim(0); ++r) {
      const T* x = args.x.as<T>() + r * args.x.stride[0];
      const T* dy = args.dy.as<T>() + r * args.dy.stride[0];
      T* __restrict dx = args.dx.as<T>() + r * args.dx.stride[0];
      const T rstd = args.rstd.as<T>()[r];
      // dx = rstd (w dy - x rstd^2 mean(w dy x)): the norm removes what points along x.
      const T along = sum_of<T>(width, [&](int64_t c) { return dy[c] * weight[c] * x[c]; });
      const T shrink = along * rstd * rstd / width;
      for (int64_t c = 0; c < width; ++c) {
        dx[c] += rstd * (dy[c] * weight[c] - x[c] * shrink);
        dweight[c] += dy[c] * x[c] * rstd;
      }
    }
  });
}

}  // namespace weft::cpu
