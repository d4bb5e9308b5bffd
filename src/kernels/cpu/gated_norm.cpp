#include "src/kernels/gated_norm.hpp"

#include <cmath>

#include "src/kernels/cpu/column_sums.hpp"
#include "src/kernels/cpu/vector_math.hpp"

namespace weft::cpu {
namespace {

/// f(gate) and its slope.
template <class T>
struct GateValue {
  T value, slope;
};

template <GateFunction function, class T>
GateValue<T> value_of(const T* gate, int64_t i) {
  if constexpr (function == GateFunction::none) return {1, 0};
  const T sigmoid = 1 / (1 + cpu::exp(-gate[i]));
  if constexpr (function == GateFunction::sigmoid) return {sigmoid, sigmoid * (1 - sigmoid)};
  return {gate[i] * sigmoid, sigmoid * (1 + gate[i] * (1 - sigmoid))};
}

/// Calls f with the function as a constant, so that loops over a row have no branch.
template <class F>
void visit_function(GateFunction function, F&& f) {
  switch (function) {
    case GateFunction::none:
      return f(std::integral_constant<GateFunction, GateFunction::none>{});
    case GateFunction::silu:
      return f(std::integral_constant<GateFunction, GateFunction::silu>{});
    case GateFunction::sigmoid:
      return f(std::integral_constant<GateFunction, GateFunction::sigmoid>{});
  }
}

template <class T>
T* row_of(const Tensor& t, int64_t r) {
  return t ? t.as<T>() + r * t.dim(1) : nullptr;
}

template <class T>
T squares_of(const T* x, int64_t width) {
  return sum_of<T>(width, [&](int64_t c) { return x[c] * x[c]; });
}

template <class T, GateFunction function>
void forward_rows(const GatedNormArgs& args) {
  const int64_t width = args.x.dim(1), whole = args.squares ? args.whole : width;
  const T* weight = args.weight.as<T>();
  for (int64_t r = 0; r < args.x.dim(0); ++r) {
    const T* x = row_of<T>(args.x, r);
    const T* gate = row_of<T>(args.gate, r);
    T* __restrict y = row_of<T>(args.y, r);
    const T squares = args.squares ? args.squares.as<T>()[r] : squares_of(x, width);
    const T rstd = 1 / std::sqrt(squares / whole + static_cast<T>(args.eps));
    args.rstd.as<T>()[r] = rstd;
    for (int64_t c = 0; c < width; ++c) {
      y[c] = x[c] * rstd * weight[c] * value_of<function>(gate, c).value;
    }
  }
}

template <class T, GateFunction function>
void backward_rows(const GatedNormGradArgs& args) {
  const int64_t width = args.x.dim(1), whole = args.along ? args.whole : width;
  const T* weight = args.weight.as<T>();
  ColumnSums sums(width);
  double* __restrict dweight = sums.data();
  for (int64_t r = 0; r < args.x.dim(0); ++r) {
    const T* x = row_of<T>(args.x, r);
    const T* gate = row_of<T>(args.gate, r);
    const T* dy = row_of<T>(args.dy, r);
    T* dx = row_of<T>(args.dx, r);
    T* __restrict dgate = row_of<T>(args.dgate, r);
    T* __restrict y = row_of<T>(args.y, r);
    const T rstd = args.rstd.as<T>()[r];
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) {
      const auto [value, slope] = value_of<function>(gate, c);
      const T unit = x[c] * rstd;
      y[c] = unit * weight[c] * value;
      if constexpr (function != GateFunction::none) dgate[c] = dy[c] * unit * weight[c] * slope;
      dweight[c] += static_cast<double>(dy[c] * unit * value);
      dx[c] = dy[c] * weight[c] * value;  // of x rstd, until the row's sum is known
    }
    // The norm removes what points along x.
    const T along = args.along ? args.along.as<T>()[r]
                               : sum_of<T>(width, [&](int64_t c) { return dx[c] * x[c]; });
    const T shrink = along * rstd * rstd / whole;
    for (int64_t c = 0; c < width; ++c) dx[c] = rstd * (dx[c] - x[c] * shrink);
  }
  sums.add_to(args.dweight.as<T>());
}

template <class T, GateFunction function>
void along_rows(const GatedNormAlongArgs& args) {
  const T* weight = args.weight.as<T>();
  for (int64_t r = 0; r < args.x.dim(0); ++r) {
    const T* x = row_of<T>(args.x, r);
    const T* gate = row_of<T>(args.gate, r);
    const T* dy = row_of<T>(args.dy, r);
    args.along.as<T>()[r] = sum_of<T>(args.x.dim(1), [&](int64_t c) {
      return dy[c] * weight[c] * value_of<function>(gate, c).value * x[c];
    });
  }
}

}  // namespace

void gated_norm_forward(const GatedNormArgs& args) {
  visit_float(args.x.dtype, [&](auto zero) {
    visit_function(args.function,
                   [&](auto function) { forward_rows<decltype(zero), function.value>(args); });
  });
}

void gated_norm_backward(const GatedNormGradArgs& args) {
  visit_float(args.x.dtype, [&](auto zero) {
    visit_function(args.function,
                   [&](auto function) { backward_rows<decltype(zero), function.value>(args); });
  });
}

void row_squares(const RowSquaresArgs& args) {
  visit_float(args.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    for (int64_t r = 0; r < args.x.dim(0); ++r) {
      args.squares.as<T>()[r] = squares_of(row_of<T>(args.x, r), args.x.dim(1));
    }
  });
}

void gated_norm_along(const GatedNormAlongArgs& args) {
  visit_float(args.x.dtype, [&](auto zero) {
    visit_function(args.function,
                   [&](auto function) { along_rows<decltype(zero), function.value>(args); });
  });
}

}  // namespace weft::cpu
