#include <cmath>

#include "src/kernels/cuda/elements.cuh"
#include "src/kernels/cuda/map.cuh"
#include "src/kernels/cuda/reduce.cuh"
#include "src/kernels/optimizer.hpp"

namespace weft::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kBlockElements = 16384;  // that one partial sum covers

struct BeginNorm {
  double* squared_norm;
  const double* loss_sum;
  __device__ void operator()(int64_t) const {
    const bool sound = isfinite(*squared_norm) && isfinite(*loss_sum);
    *squared_norm = sound ? 0 : NAN;
  }
};

/// partial[block] = the sum of x^2 over its elements, in f64: the order of a sum costs no accuracy.
template <class T, int W>
__global__ void __launch_bounds__(kThreads) squares(double* partial, const T* x, int64_t n) {
  __shared__ double shared[kThreads / kWarp];
  const int64_t begin = blockIdx.x * kBlockElements;
  const int64_t end = begin + kBlockElements < n ? begin + kBlockElements : n;
  double sum = 0;
  for (int64_t i = begin + static_cast<int64_t>(threadIdx.x) * W; i < end; i += kThreads * W) {
    float values[W];
    load<W>(x + i, values);
#pragma unroll
    for (int j = 0; j < W; ++j) sum += static_cast<double>(values[j]) * values[j];
  }
  sum = row_reduce(sum, shared, Sum{});
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(1024)
    add_partials(double* total, const double* partial, int64_t n) {
  __shared__ double shared[kWarp];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += partial[i];
  sum = row_reduce(sum, shared, Sum{});
  if (threadIdx.x == 0) *total += sum;
}

/// The constants of one update, rounded as the CPU twin rounds them.
struct Update {
  float beta1, beta2, one_minus_beta1, one_minus_beta2;
  float rate;   // lr / (1 - beta1^t)
  float root2;  // (1 - beta2^t)^-1/2
  float decay, eps;
  double grad_clip;
};

/// What gradients of that norm are multiplied with; not to be asked where the norm is not finite.
__device__ float clip_factor(double norm, double grad_clip) {
  return static_cast<float>(grad_clip > 0 && norm > grad_clip ? grad_clip / norm : 1.0);
}

template <int W>
__global__ void __launch_bounds__(kThreads)
    update(float* param, float* m, float* v, const float* grad, const double* squared_norm,
           Update u, int64_t n) {
  const double norm = sqrt(*squared_norm);
  if (!isfinite(norm)) return;
  const float scale = clip_factor(norm, u.grad_clip);
  const int64_t i = thread_index() * W;
  if (i >= n) return;
  float p[W], first[W], second[W], g[W];
  load<W>(param + i, p);
  load<W>(m + i, first);
  load<W>(v + i, second);
  load<W>(grad + i, g);
#pragma unroll
  for (int j = 0; j < W; ++j) {
    g[j] *= scale;
    first[j] = u.beta1 * first[j] + u.one_minus_beta1 * g[j];
    second[j] = u.beta2 * second[j] + u.one_minus_beta2 * g[j] * g[j];
    p[j] -= u.rate * first[j] / (sqrtf(second[j]) * u.root2 + u.eps) + u.decay * p[j];
  }
  store<W>(param + i, p);
  store<W>(m + i, first);
  store<W>(v + i, second);
}

struct Nesterov {
  float* update;
  float* m;
  const float* grad;
  const double* squared_norm;
  double grad_clip;
  float momentum;
  __device__ void operator()(int64_t i) const {
    const double norm = sqrt(*squared_norm);
    if (!isfinite(norm)) return;
    const float g = grad[i] * clip_factor(norm, grad_clip);
    m[i] = momentum * m[i] + g;
    update[i] = g + momentum * m[i];
  }
};

struct DecayedStep {
  float* param;
  const float* update;
  const double* squared_norm;
  float rate, decay;
  __device__ void operator()(int64_t i) const {
    if (!isfinite(*squared_norm)) return;
    param[i] -= rate * update[i] + decay * param[i];
  }
};

struct Normalize {
  float* x;
  const double* squared_sum;
  double eps;
  __device__ void operator()(int64_t i) const {
    x[i] *= static_cast<float>(1 / (sqrt(*squared_sum) + eps));
  }
};

struct AddScaled {
  float* y;
  const float* x;
  float alpha;
  __device__ void operator()(int64_t i) const { y[i] += alpha * x[i]; }
};

}  // namespace

void begin_norm(const BeginNormArgs& args, Stream& stream) {
  launch_map<1>(1, BeginNorm{elements<double>(args.squared_norm), elements<double>(args.loss_sum)},
                stream);
}

void squared_sum(const SquaredSumArgs& args, Stream& stream) {
  const int64_t n = args.x.numel();
  if (n == 0) return;
  const int64_t blocks = ceil_div(n, kBlockElements);
  double* partial = reinterpret_cast<double*>(
      cuda_stream(stream).workspace(blocks * static_cast<int64_t>(sizeof(double))));
  visit_element(args.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_width<T>(flat_in_packs({&args.x}), [&](auto width) {
      squares<T, decltype(width)::value>
          <<<grid_of(blocks), kThreads, 0, native(stream)>>>(partial, elements<T>(args.x), n);
    });
  });
  WEFT_CALL(cudaGetLastError());
  add_partials<<<1, 1024, 0, native(stream)>>>(elements<double>(args.total), partial, blocks);
  WEFT_CALL(cudaGetLastError());
}

void adamw(const AdamWArgs& args, Stream& stream) {
  WEFT_CHECK(args.param.dtype == DType::f32, "master weights and moments are f32 on CUDA, not ",
             name(args.param.dtype));
  const int64_t n = args.param.numel();
  if (n == 0) return;
  const double beta1_t = std::pow(args.beta1, args.step), beta2_t = std::pow(args.beta2, args.step);
  const Update constants{static_cast<float>(args.beta1),
                         static_cast<float>(args.beta2),
                         static_cast<float>(1 - args.beta1),
                         static_cast<float>(1 - args.beta2),
                         static_cast<float>(args.lr / (1 - beta1_t)),
                         static_cast<float>(1 / std::sqrt(1 - beta2_t)),
                         static_cast<float>(args.lr * args.weight_decay),
                         static_cast<float>(args.eps),
                         args.grad_clip};
  with_width<float>(flat_in_packs({&args.param, &args.m, &args.v, &args.grad}), [&](auto width) {
    constexpr int W = decltype(width)::value;
    update<W><<<grid_of(ceil_div(n, int64_t{kThreads} * W)), kThreads, 0, native(stream)>>>(
        elements<float>(args.param), elements<float>(args.m), elements<float>(args.v),
        elements<float>(args.grad), elements<double>(args.squared_norm), constants, n);
  });
  WEFT_CALL(cudaGetLastError());
}

void nesterov(const NesterovArgs& args, Stream& stream) {
  launch_map<1>(args.grad.numel(),
                Nesterov{elements<float>(args.update), elements<float>(args.m),
                         elements<float>(args.grad), elements<double>(args.squared_norm),
                         args.grad_clip, static_cast<float>(args.momentum)},
                stream);
}

void decayed_step(const DecayedStepArgs& args, Stream& stream) {
  launch_map<1>(
      args.param.numel(),
      DecayedStep{elements<float>(args.param), elements<float>(args.update),
                  elements<double>(args.squared_norm), static_cast<float>(args.lr * args.scale),
                  static_cast<float>(args.lr * args.weight_decay)},
      stream);
}

void normalize(const NormalizeArgs& args, Stream& stream) {
  launch_map<1>(args.x.numel(),
                Normalize{elements<float>(args.x), elements<double>(args.squared_sum), args.eps},
                stream);
}

void add_scaled(const AddScaledArgs& args, Stream& stream) {
  launch_map<1>(
      args.y.numel(),
      AddScaled{elements<float>(args.y), elements<float>(args.x), static_cast<float>(args.alpha)},
      stream);
}

}  // namespace weft::cuda
