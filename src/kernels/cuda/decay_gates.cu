// A thread keeps a few columns and goes down the rows, so that what the columns add up to stays in
// its registers.
#include "src/kernels/decay_gates.hpp"

#include <algorithm>

#include "src/kernels/cuda/column_sums.cuh"

namespace weft::cuda {
namespace {

constexpr int kMostHeads = 512;  // of one launch: they travel in the kernel's arguments

struct Decays {
  float log_decay[kMostHeads];
};

__global__ void write_decays(float* log_decay, Decays decays, int heads) {
  for (int h = threadIdx.x; h < heads; h += blockDim.x) log_decay[h] = decays.log_decay[h];
}

__device__ float gate_sigmoid(float x) {
  const float below = expf(-fabsf(x));  // never of a positive number
  return (x >= 0 ? 1.0f : below) / (1.0f + below);
}

/// log(1 + e^x)
__device__ float softplus(float x) {
  return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x)));
}

template <class T, int W>
struct SigmoidDecayForward {
  float* log_decay;
  const T* x;
  const T* bias;
  int64_t width;
  float normalizer;

  __device__ void operator()(int64_t r, int64_t c) const {
    float xs[W], biases[W];
    load<W>(x + r * width + c, xs);
    load<W>(bias + c, biases);
#pragma unroll
    for (int j = 0; j < W; ++j) xs[j] = -softplus(-(xs[j] + biases[j])) / normalizer;
    store<W>(log_decay + r * width + c, xs);
  }
};

template <class T, int W>
struct SigmoidDecayBackward {
  T* dx;
  const float* dlog_decay;
  const T* x;
  const T* bias;
  int64_t width;
  float normalizer;

  __device__ void operator()(int64_t r, int64_t c, float (&dbias)[1][W]) const {
    const int64_t i = r * width + c;
    float xs[W], biases[W], d[W];
    load<W>(x + i, xs);
    load<W>(dlog_decay + i, d);
    load<W>(bias + c, biases);
#pragma unroll
    for (int j = 0; j < W; ++j) {
      d[j] *= gate_sigmoid(-(xs[j] + biases[j])) / normalizer;
      dbias[0][j] += d[j];
    }
    store<W>(dx + i, d);
  }
};

template <class T, int W>
struct DeltaGatesForward {
  float* log_decay;
  float* beta;
  const T* a;
  const T* b;
  const T* a_log;
  const T* dt_bias;
  int64_t width;
  float beta_scale;

  __device__ void operator()(int64_t r, int64_t c) const {
    const int64_t i = r * width + c;
    float as[W], bs[W], logs[W], biases[W];
    load<W>(a + i, as);
    load<W>(b + i, bs);
    load<W>(a_log + c, logs);
    load<W>(dt_bias + c, biases);
#pragma unroll
    for (int j = 0; j < W; ++j) {
      as[j] = -expf(logs[j]) * softplus(as[j] + biases[j]);
      bs[j] = beta_scale * gate_sigmoid(bs[j]);
    }
    store<W>(log_decay + i, as);
    store<W>(beta + i, bs);
  }
};

template <class T, int W>
struct DeltaGatesBackward {
  T* da;
  T* db;
  const float* dlog_decay;
  const float* dbeta;
  const float* log_decay;
  const T* a;
  const T* b;
  const T* a_log;
  const T* dt_bias;
  int64_t width;
  float beta_scale;

  /// Sums: of da_log, of ddt_bias.
  __device__ void operator()(int64_t r, int64_t c, float (&sums)[2][W]) const {
    const int64_t i = r * width + c;
    float as[W], bs[W], dlogs[W], dbetas[W], decays[W], logs[W], biases[W];
    load<W>(a + i, as);
    load<W>(b + i, bs);
    load<W>(dlog_decay + i, dlogs);
    load<W>(dbeta + i, dbetas);
    load<W>(log_decay + i, decays);
    load<W>(a_log + c, logs);
    load<W>(dt_bias + c, biases);
#pragma unroll
    for (int j = 0; j < W; ++j) {
      as[j] = -dlogs[j] * expf(logs[j]) * gate_sigmoid(as[j] + biases[j]);
      sums[0][j] += dlogs[j] * decays[j];
      sums[1][j] += as[j];
      const float s = gate_sigmoid(bs[j]);
      bs[j] = dbetas[j] * beta_scale * s * (1 - s);
    }
    store<W>(da + i, as);
    store<W>(db + i, bs);
  }
};

/// Calls f with a value of the type of `x`, and with how many columns a thread takes as a constant:
/// a pack of f32, or one.
template <class F>
void visit_columns(const Tensor& x, std::initializer_list<const Tensor*> tensors, F&& f) {
  if (x.numel() == 0) return;
  visit_element(x.dtype, [&](auto zero) {
    with_width<float>(rows_in_packs(x.dim(1), tensors), [&](auto width) { f(zero, width); });
  });
}

}  // namespace

void fixed_decay(const FixedDecayArgs& args, Stream& stream) {
  const int64_t heads = std::ssize(*args.values);
  for (int64_t first = 0; first < heads; first += kMostHeads) {
    const int count = static_cast<int>(std::min<int64_t>(kMostHeads, heads - first));
    Decays decays{};
    for (int h = 0; h < count; ++h) {
      decays.log_decay[h] = static_cast<float>((*args.values)[first + h]);
    }
    write_decays<<<1, 128, 0, native(stream)>>>(elements<float>(args.log_decay) + first, decays,
                                                count);
    WEFT_CALL(cudaGetLastError());
  }
}

void sigmoid_decay_forward(const SigmoidDecayArgs& args, Stream& stream) {
  visit_columns(args.x, {&args.log_decay, &args.x, &args.bias}, [&](auto zero, auto w) {
    using T = decltype(zero);
    constexpr int W = decltype(w)::value;
    const SigmoidDecayForward<T, W> f{elements<float>(args.log_decay), elements<T>(args.x),
                                      elements<T>(args.bias), args.x.dim(1),
                                      static_cast<float>(args.normalizer)};
    launch_over_rows<W, 0>(args.x.dim(0), args.x.dim(1), f, stream);
  });
}

void sigmoid_decay_backward(const SigmoidDecayGradArgs& args, Stream& stream) {
  const auto tensors = {&args.dx, &args.dlog_decay, &args.x, &args.bias};
  visit_columns(args.x, tensors, [&](auto zero, auto w) {
    using T = decltype(zero);
    constexpr int W = decltype(w)::value;
    const SigmoidDecayBackward<T, W> f{elements<T>(args.dx), elements<float>(args.dlog_decay),
                                       elements<T>(args.x),  elements<T>(args.bias),
                                       args.x.dim(1),        static_cast<float>(args.normalizer)};
    const ColumnSums sums = launch_over_rows<W, 1>(args.x.dim(0), args.x.dim(1), f, stream);
    add_column_sums(args.dbias, sums, stream);
  });
}

void delta_gates_forward(const DeltaGatesArgs& args, Stream& stream) {
  const auto tensors = {&args.log_decay, &args.beta, &args.a, &args.b, &args.a_log, &args.dt_bias};
  visit_columns(args.a, tensors, [&](auto zero, auto w) {
    using T = decltype(zero);
    constexpr int W = decltype(w)::value;
    const DeltaGatesForward<T, W> f{elements<float>(args.log_decay),
                                    elements<float>(args.beta),
                                    elements<T>(args.a),
                                    elements<T>(args.b),
                                    elements<T>(args.a_log),
                                    elements<T>(args.dt_bias),
                                    args.a.dim(1),
                                    static_cast<float>(args.beta_scale)};
    launch_over_rows<W, 0>(args.a.dim(0), args.a.dim(1), f, stream);
  });
}

void delta_gates_backward(const DeltaGatesGradArgs& args, Stream& stream) {
  const auto tensors = {&args.da, &args.db, &args.dlog_decay, &args.dbeta,  &args.log_decay,
                        &args.a,  &args.b,  &args.a_log,      &args.dt_bias};
  visit_columns(args.a, tensors, [&](auto zero, auto w) {
    using T = decltype(zero);
    constexpr int W = decltype(w)::value;
    const DeltaGatesBackward<T, W> f{elements<T>(args.da),
                                     elements<T>(args.db),
                                     elements<float>(args.dlog_decay),
                                     elements<float>(args.dbeta),
                                     elements<float>(args.log_decay),
                                     elements<T>(args.a),
                                     elements<T>(args.b),
                                     elements<T>(args.a_log),
                                     elements<T>(args.dt_bias),
                                     args.a.dim(1),
                                     static_cast<float>(args.beta_scale)};
    ColumnSums sums = launch_over_rows<W, 2>(args.a.dim(0), args.a.dim(1), f, stream);
    add_column_sums(args.da_log, sums, stream);
    sums.partial += sums.width;
    add_column_sums(args.ddt_bias, sums, stream);
  });
}

}  // namespace weft::cuda
