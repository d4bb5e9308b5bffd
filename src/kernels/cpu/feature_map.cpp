#include "src/kernels/feature_map.hpp"

#include <cmath>

#include "src/kernels/cpu/vector_math.hpp"

namespace weft::cpu {

void silu_forward(const SiluArgs& args) {
  visit_float(args.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    T* y = args.y.as<T>();
    const T* x = args.x.as<T>();
    const int64_t n = args.y.numel();
    for (int64_t i = 0; i < n; ++i) y[i] = x[i] / (1 + cpu::exp(-x[i]));
  });
}

void silu_backward(const SiluGradArgs& args) {
  visit_float(args.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    T* dx = args.dx.as<T>();
    const T* dy = args.dy.as<T>();
    const T* x = args.x.as<T>();
    const int64_t n = args.x.numel();
    for (int64_t i = 0; i < n; ++i) {
      const T sigmoid = 1 / (1 + cpu::exp(-x[i]));
      dx[i] = dy[i] * sigmoid * (1 + x[i] * (1 - sigmoid));
    }
  });
}

void feature_map_forward(const FeatureMapArgs& args) {
  visit_float(args.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    T* x = args.x.as<T>();
    const int64_t n = args.x.numel();
    if (args.map == FeatureMap::elu) {
      for (int64_t i = 0; i < n; ++i) {
        const T below = cpu::exp(x[i] > 0 ? T(0) : x[i]);
        x[i] = x[i] > 0 ? x[i] + 1 : below;
      }
    } else {
      for (int64_t i = 0; i < n; ++i) x[i] = x[i] > 0 ? x[i] : T(0);
    }
  });
}

void feature_map_backward(const FeatureMapGradArgs& args) {
  visit_float(args.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    T* dy = args.dy.as<T>();
    const T* y = args.y.as<T>();
    const int64_t n = args.y.numel();
    if (args.map == FeatureMap::elu) {
      for (int64_t i = 0; i < n; ++i) dy[i] *= y[i] < 1 ? y[i] : T(1);
    } else {
      for (int64_t i = 0; i < n; ++i) dy[i] = y[i] > 0 ? dy[i] : T(0);
    }
  });
}

void unit_norm_forward(const UnitNormArgs& args) {
  visit_float(args.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t width = args.x.dim(1);
    for (int64_t r = 0; r < args.x.dim(0); ++r) {
      T* x = args.x.as<T>() + r * width;
      const T squares = sum_of<T>(width, [&](int64_t c) { return x[c] * x[c]; });
      const T rnorm = 1 / std::sqrt(squares + static_cast<T>(args.eps));
      args.rnorm.as<T>()[r] = rnorm;
      for (int64_t c = 0; c < width; ++c) x[c] *= rnorm;
    }
  });
}

void unit_norm_backward(const UnitNormGradArgs& args) {
  visit_float(args.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t width = args.y.dim(1);
    for (int64_t r = 0; r < args.y.dim(0); ++r) {
      T* dy = args.dy.as<T>() + r * width;
      const T* y = args.y.as<T>() + r * width;
      const T rnorm = args.rnorm.as<T>()[r];
      const T along = sum_of<T>(width, [&](int64_t c) { return y[c] * dy[c]; });
      for (int64_t c = 0; c < width; ++c) dy[c] = rnorm * (dy[c] - y[c] * along);
    }
  });
}

}  // namespace weft::cpu
