// A block, a row: one pass for the maximum and the sum, a second for the gradient, whose reads come
// mostly from the cache. The rows' losses are added by one block in a fixed order.
#include "src/kernels/cuda/elements.cuh"
#include "src/kernels/cuda/reduce.cuh"
#include "src/kernels/loss.hpp"

namespace weft::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;

/// A running maximum and the sum of exponents relative to it.
struct Online {
  float most = -INFINITY;
  float sum = 0;

  template <int W>
  __device__ void absorb(const float (&x)[W]) {
    float largest = most;
#pragma unroll
    for (int j = 0; j < W; ++j) largest = fmaxf(largest, x[j]);
    if (largest == -INFINITY) return;
    if (largest > most) {
      sum *= expf(most - largest);
      most = largest;
    }
#pragma unroll
    for (int j = 0; j < W; ++j) sum += expf(x[j] - most);
  }
};

struct Merge {
  __device__ Online operator()(const Online& a, const Online& b) const {
    const float most = fmaxf(a.most, b.most);
    if (most == -INFINITY) return {};
    return {most, a.sum * expf(a.most - most) + b.sum * expf(b.most - most)};
  }
};

/// Every thread gets the block's maximum and sum.
__device__ Online block_merge(Online mine, Online* shared) {
  const Merge merge;
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    // The lower lane's value stands first on both sides, so that both get the same bits.
    const Online other{__shfl_xor_sync(0xFFFFFFFFu, mine.most, offset),
                       __shfl_xor_sync(0xFFFFFFFFu, mine.sum, offset)};
    mine = (threadIdx.x & offset) != 0 ? merge(other, mine) : merge(mine, other);
  }
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = mine;
  __syncthreads();
  Online total = shared[0];
  for (int w = 1; w < kWarps; ++w) total = merge(total, shared[w]);
  return total;
}

template <class T, int W>
__global__ void __launch_bounds__(kThreads)
    rows(double* losses, T* logits, const int32_t* labels, int64_t vocab, int64_t stride,
         float scale, bool gradient) {
  __shared__ Online shared[kWarps];
  T* row = logits + blockIdx.x * stride;
  const int32_t label = labels[blockIdx.x];
  const int64_t first = static_cast<int64_t>(threadIdx.x) * W;
  constexpr int64_t kStep = int64_t{kThreads} * W;
  if (label < 0) {
    const float zeros[W] = {};
    for (int64_t c = first; gradient && c < vocab; c += kStep) store<W>(row + c, zeros);
    if (threadIdx.x == 0) losses[blockIdx.x] = 0;
    return;
  }
  Online mine;
  for (int64_t c = first; c < vocab; c += kStep) {
    float x[W];
    load<W>(row + c, x);
    mine.absorb(x);
  }
  const bool known = label < vocab;  // an id past the vocabulary makes the loss NaN
  const float target = known ? to_float(row[label]) : NAN;
  const Online total = block_merge(mine, shared);  // its barrier is after the read of the target
  if (threadIdx.x == 0) {
    losses[blockIdx.x] =
        log(static_cast<double>(total.sum)) + (static_cast<double>(total.most) - target);
  }
  if (!gradient) return;
  const float factor = known ? scale / total.sum : NAN;
  for (int64_t c = first; c < vocab; c += kStep) {
    float x[W];
    load<W>(row + c, x);
#pragma unroll
    for (int j = 0; j < W; ++j) {
      x[j] = expf(x[j] - total.most) * factor - (c + j == label ? scale : 0.0f);
    }
    store<W>(row + c, x);
  }
}

__global__ void __launch_bounds__(kThreads)
    add_losses(double* total, const double* losses, int64_t n) {
  __shared__ double shared[kWarps];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) sum += losses[i];
  sum = row_reduce(sum, shared, Sum{});
  if (threadIdx.x == 0) *total += sum;
}

}  // namespace

void cross_entropy(const CrossEntropyArgs& args, Stream& stream) {
  const int64_t n = args.logits.dim(0), vocab = args.logits.dim(1);
  if (n == 0) return;
  double* losses = reinterpret_cast<double*>(
      cuda_stream(stream).workspace(n * static_cast<int64_t>(sizeof(double))));
  visit_element(args.logits.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_width<T>(rows_in_packs(vocab, {&args.logits}), [&](auto width) {
      constexpr int W = decltype(width)::value;
      rows<T, W><<<grid_of(n), kThreads, 0, native(stream)>>>(
          losses, elements<T>(args.logits), elements<int32_t>(args.labels), vocab,
          args.logits.stride[0], static_cast<float>(args.scale), args.gradient);
    });
  });
  WEFT_CALL(cudaGetLastError());
  add_losses<<<1, kThreads, 0, native(stream)>>>(elements<double>(args.loss_sum), losses, n);
  WEFT_CALL(cudaGetLastError());
}

}  // namespace weft::cuda
