#include "src/kernels/rope.hpp"

#include <cmath>

namespace weft::cpu {

void rope_table(const RopeTableArgs& args) {
  visit_float(args.cos.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t half = std::ssize(*args.frequencies);
    const int64_t rows = args.positions.numel();
    for (int64_t r = 0; r < rows; ++r) {
      const double position = static_cast<double>(args.positions.as<int64_t>()[r]);
      for (int64_t i = 0; i < half; ++i) {
        const double angle = position * (*args.frequencies)[i];
        args.cos.as<T>()[r * half + i] = static_cast<T>(std::cos(angle));
        args.sin.as<T>()[r * half + i] = static_cast<T>(std::sin(angle));
      }
    }
  });
}

void rope(const RopeArgs& args) {
  visit_float(args.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Tensor& x = args.x;
    const int64_t half = x.dim(3) / 2;
    const T sign = args.inverse ? -1 : 1;
    for (int64_t b = 0; b < x.dim(0); ++b) {
      for (int64_t t = 0; t < x.dim(1); ++t) {
        const T* cos = args.cos.as<T>() + b * args.cos.stride[0] + t * args.cos.stride[1];
        const T* sin = args.sin.as<T>() + b * args.sin.stride[0] + t * args.sin.stride[1];
        for (int64_t h = 0; h < x.dim(2); ++h) {
          T* head = x.as<T>() + b * x.stride[0] + t * x.stride[1] + h * x.stride[2];
          for (int64_t i = 0; i < half; ++i) {
            const T first = head[i];
            const T second = head[i + half];
            head[i] = first * cos[i] - sign * second * sin[i];
            head[i + half] = second * cos[i] + sign * first * sin[i];
          }
        }
      }
    }
  });
}

}  // namespace weft::cpu
