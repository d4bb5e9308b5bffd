#include "src/kernels/decay_gates.hpp"

#include <algorithm>
#include <cmath>

#include "src/kernels/cpu/column_sums.hpp"

namespace weft::cpu {
namespace {

template <class T>
T sigmoid(T x) {
  const T below = std::exp(-std::abs(x));  // never of a positive number
  return x >= 0 ? 1 / (1 + below) : below / (1 + below);
}

/// log(1 + e^x)
template <class T>
T softplus(T x) {
  return std::max(x, T(0)) + std::log1p(std::exp(-std::abs(x)));
}

/// Calls f(row, column) over [R, N], rows outside.
template <class F>
void for_each(const Tensor& x, F&& f) {
  for (int64_t r = 0; r < x.dim(0); ++r) {
    for (int64_t c = 0; c < x.dim(1); ++c) f(r * x.dim(1) + c, c);
  }
}

}  // namespace

void fixed_decay(const FixedDecayArgs& args) {
  visit_float(args.log_decay.dtype, [&](auto zero) {
    using T = decltype(zero);
    std::copy(args.values->begin(), args.values->end(), args.log_decay.as<T>());
  });
}

void sigmoid_decay_forward(const SigmoidDecayArgs& args) {
  visit_float(args.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T *x = args.x.as<T>(), *bias = args.bias.as<T>();
    T* log_decay = args.log_decay.as<T>();
    const T normalizer = static_cast<T>(args.normalizer);
    for_each(args.x, [&](int64_t i, int64_t c) {
      log_decay[i] = -softplus(-(x[i] + bias[c])) / normalizer;
    });
  });
}

void sigmoid_decay_backward(const SigmoidDecayGradArgs& args) {
  visit_float(args.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T *x = args.x.as<T>(), *bias = args.bias.as<T>(), *dlog = args.dlog_decay.as<T>();
    T* dx = args.dx.as<T>();
    ColumnSums dbias(args.x.dim(1));
    const T normalizer = static_cast<T>(args.normalizer);
    for_each(args.x, [&](int64_t i, int64_t c) {
      dx[i] = dlog[i] * sigmoid(-(x[i] + bias[c])) / normalizer;
      dbias.add(c, dx[i]);
    });
    dbias.add_to(args.dbias.as<T>());
  });
}

void delta_gates_forward(const DeltaGatesArgs& args) {
  visit_float(args.a.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T *a = args.a.as<T>(), *b = args.b.as<T>();
    const T *a_log = args.a_log.as<T>(), *dt_bias = args.dt_bias.as<T>();
    T *log_decay = args.log_decay.as<T>(), *beta = args.beta.as<T>();
    for_each(args.a, [&](int64_t i, int64_t h) {
      log_decay[i] = -std::exp(a_log[h]) * softplus(a[i] + dt_bias[h]);
      beta[i] = static_cast<T>(args.beta_scale) * sigmoid(b[i]);
    });
  });
}

void delta_gates_backward(const DeltaGatesGradArgs& args) {
  visit_float(args.a.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T *a = args.a.as<T>(), *b = args.b.as<T>();
    const T *a_log = args.a_log.as<T>(), *dt_bias = args.dt_bias.as<T>();
    const T *log_decay = args.log_decay.as<T>(), *dlog = args.dlog_decay.as<T>();
    const T* dbeta = args.dbeta.as<T>();
    T *da = args.da.as<T>(), *db = args.db.as<T>();
    ColumnSums da_log(args.a.dim(1)), ddt_bias(args.a.dim(1));
    for_each(args.a, [&](int64_t i, int64_t h) {
      da[i] = -dlog[i] * std::exp(a_log[h]) * sigmoid(a[i] + dt_bias[h]);
      ddt_bias.add(h, da[i]);
      da_log.add(h, dlog[i] * log_decay[i]);
      const T s = sigmoid(b[i]);
      db[i] = dbeta[i] * static_cast<T>(args.beta_scale) * s * (1 - s);
    });
    da_log.add_to(args.da_log.as<T>());
    ddt_bias.add_to(args.ddt_bias.as<T>());
  });
}

}  // namespace weft::cpu
