#include <cmath>
#include <limits>

#include "src/kernels/cpu/vector_math.hpp"
#include "src/kernels/optimizer.hpp"

namespace weft::cpu {
namespace {

double clip_factor(double norm, double grad_clip) {
  return grad_clip > 0 && norm > grad_clip ? grad_clip / norm : 1.0;
}

}  // namespace

void begin_norm(const BeginNormArgs& args) {
  double& norm = args.squared_norm.as<double>()[0];
  const bool sound = std::isfinite(norm) && std::isfinite(args.loss_sum.as<double>()[0]);
  norm = sound ? 0 : std::numeric_limits<double>::quiet_NaN();
}

void squared_sum(const SquaredSumArgs& args) {
  visit_float(args.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* x = args.x.as<T>();
    args.total.as<double>()[0] +=
        sum_of<double>(args.x.numel(), [&](int64_t i) { return static_cast<double>(x[i]) * x[i]; });
  });
}

void adamw(const AdamWArgs& args) {
  const double norm = std::sqrt(args.squared_norm.as<double>()[0]);
  if (!std::isfinite(norm)) return;
  const double clip = clip_factor(norm, args.grad_clip);
  visit_float(args.param.dtype, [&](auto zero) {
    using T = decltype(zero);
    T* __restrict param = args.param.as<T>();
    T* __restrict m = args.m.as<T>();
    T* __restrict v = args.v.as<T>();
    const T* grad = args.grad.as<T>();
    const T beta1 = static_cast<T>(args.beta1), beta2 = static_cast<T>(args.beta2);
    const T one_minus_beta1 = static_cast<T>(1 - args.beta1);
    const T one_minus_beta2 = static_cast<T>(1 - args.beta2);
    // lr / (1 - beta1^t) and sqrt(1 - beta2^t), so that the loop has one division and one root.
    const T rate = static_cast<T>(args.lr / (1 - std::pow(args.beta1, args.step)));
    const T root2 = static_cast<T>(1 / std::sqrt(1 - std::pow(args.beta2, args.step)));
    const T decay = static_cast<T>(args.lr * args.weight_decay);
    const T scale = static_cast<T>(clip), eps = static_cast<T>(args.eps);
    const int64_t n = args.param.numel();
    for (int64_t i = 0; i < n; ++i) {
      const T g = grad[i] * scale;
      m[i] = beta1 * m[i] + one_minus_beta1 * g;
      v[i] = beta2 * v[i] + one_minus_beta2 * g * g;
      param[i] -= rate * m[i] / (std::sqrt(v[i]) * root2 + eps) + decay * param[i];
    }
  });
}

void nesterov(const NesterovArgs& args) {
  const double norm = std::sqrt(args.squared_norm.as<double>()[0]);
  if (!std::isfinite(norm)) return;
  visit_float(args.grad.dtype, [&](auto zero) {
    using T = decltype(zero);
    T* update = args.update.as<T>();
    T* m = args.m.as<T>();
    const T* grad = args.grad.as<T>();
    const T scale = static_cast<T>(clip_factor(norm, args.grad_clip));
    const T momentum = static_cast<T>(args.momentum);
    const int64_t n = args.grad.numel();
    for (int64_t i = 0; i < n; ++i) {
      const T g = grad[i] * scale;
      m[i] = momentum * m[i] + g;
      update[i] = g + momentum * m[i];
    }
  });
}

void decayed_step(const DecayedStepArgs& args) {
  if (!std::isfinite(args.squared_norm.as<double>()[0])) return;
  visit_float(args.param.dtype, [&](auto zero) {
    using T = decltype(zero);
    T* __restrict param = args.param.as<T>();
    const T* update = args.update.as<T>();
    const T rate = static_cast<T>(args.lr * args.scale);
    const T decay = static_cast<T>(args.lr * args.weight_decay);
    const int64_t n = args.param.numel();
    for (int64_t i = 0; i < n; ++i) param[i] -= rate * update[i] + decay * param[i];
  });
}

void normalize(const NormalizeArgs& args) {
  const double factor = 1 / (std::sqrt(args.squared_sum.as<double>()[0]) + args.eps);
  visit_float(args.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    T* x = args.x.as<T>();
    const int64_t n = args.x.numel();
    for (int64_t i = 0; i < n; ++i) x[i] *= static_cast<T>(factor);
  });
}

void add_scaled(const AddScaledArgs& args) {
  visit_float(args.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    T* __restrict y = args.y.as<T>();
    const T* x = args.x.as<T>();
    const T alpha = static_cast<T>(args.alpha);
    const int64_t n = args.y.numel();
    for (int64_t i = 0; i < n; ++i) y[i] += alpha * x[i];
  });
}

}  // namespace weft::cpu
