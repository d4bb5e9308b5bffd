#include "src/kernels/pointwise.hpp"

#include <algorithm>

#include "src/kernels/cpu/vector_math.hpp"

namespace weft::cpu {

void swiglu_forward(const SwigluArgs& args) {
  visit_float(args.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    T* y = args.y.as<T>();
    const T* gate = args.gate.as<T>();
    const T* up = args.up.as<T>();
    const int64_t n = args.y.numel();
    for (int64_t i = 0; i < n; ++i) {
      const T sigmoid = 1 / (1 + cpu::exp(-gate[i]));  // as backward forms it: the same bits
      y[i] = gate[i] * sigmoid * up[i];
    }
  });
}

void swiglu_backward(const SwigluGradArgs& args) {
  visit_float(args.dy.dtype, [&](auto zero) {
    using T = decltype(zero);
    T* __restrict dgate = args.dgate.as<T>();
    T* __restrict dup = args.dup.as<T>();
    T* __restrict y = args.y.as<T>();
    const T* dy = args.dy.as<T>();
    const T* gate = args.gate.as<T>();
    const T* up = args.up.as<T>();
    const int64_t n = args.dy.numel();
    for (int64_t i = 0; i < n; ++i) {
      const T sigmoid = 1 / (1 + cpu::exp(-gate[i]));
      const T silu = gate[i] * sigmoid;
      y[i] = silu * up[i];
      dup[i] = dy[i] * silu;
      dgate[i] = dy[i] * up[i] * (sigmoid + silu * (1 - sigmoid));
    }
  });
}

void add(const AddArgs& args) {
  visit_float(args.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    T* y = args.y.as<T>();
    const T* a = args.a.as<T>();
    const T* b = args.b.as<T>();
    const int64_t n = args.y.numel();
    for (int64_t i = 0; i < n; ++i) y[i] = a[i] + b[i];
  });
}

void fill(const FillArgs& args) {
  visit_float(args.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    std::fill_n(args.y.as<T>(), args.y.numel(), static_cast<T>(args.value));
  });
}

}  // namespace weft::cpu
