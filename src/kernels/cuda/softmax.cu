// Rows of scores in f32: a block of threads a row, walked twice going forward (the running maximum
// and sum together), once going backward.
#include "src/kernels/softmax.hpp"

#include "src/kernels/cuda/elements.cuh"
#include "src/kernels/cuda/reduce.cuh"

namespace weft::cuda {
namespace {

constexpr int kThreads = 256;

/// [B, H, T] numbers, or the starts of the rows of [B, H, T, K].
struct Rows {
  float* data;
  int64_t batch, head, token;  // strides

  static Rows of(const Tensor& t) {
    return {elements<float>(t), t.stride[0], t.stride[1], t.stride[2]};
  }
  __device__ float* at(int64_t b, int64_t h, int64_t t) const {
    return data + b * batch + h * head + t * token;
  }
};

struct Intervals {
  const int64_t* begin;
  const int64_t* end;
  int64_t begin_stride, end_stride;
  int64_t first_key, keys;

  static Intervals of(const Tensor& begin, const Tensor& end, int64_t first_key, int64_t keys) {
    return {elements<int64_t>(begin),
            elements<int64_t>(end),
            begin.stride[0],
            end.stride[0],
            first_key,
            keys};
  }
  __device__ int64_t local(int64_t key, int64_t low) const {
    key -= first_key;
    return key < low ? low : (key > keys ? keys : key);
  }
  __device__ int64_t first(int64_t b, int64_t t) const {
    return local(begin[b * begin_stride + t], 0);
  }
  __device__ int64_t last(int64_t b, int64_t t, int64_t low) const {
    return local(end[b * end_stride + t], low);
  }
};

__global__ void __launch_bounds__(kThreads) forward(Rows scores, Rows lse, Intervals intervals) {
  __shared__ float shared[kThreads / kWarp];
  const int64_t t = blockIdx.x, h = blockIdx.y, b = blockIdx.z;
  float* p = scores.at(b, h, t);
  const int64_t begin = intervals.first(b, t), end = intervals.last(b, t, begin);
  float most = -INFINITY;
  for (int64_t j = begin + threadIdx.x; j < end; j += kThreads) most = fmaxf(most, p[j]);
  most = row_reduce(most, shared, Max{});
  float sum = 0;
  for (int64_t j = begin + threadIdx.x; j < end; j += kThreads) sum += expf(p[j] - most);
  sum = row_reduce(sum, shared, Sum{});
  const float scale = 1 / sum;  // not used where nothing is seen
  for (int64_t j = threadIdx.x; j < intervals.keys; j += kThreads) {
    p[j] = j >= begin && j < end ? expf(p[j] - most) * scale : 0.0f;
  }
  if (threadIdx.x == 0) *lse.at(b, h, t) = begin < end ? most + logf(sum) : -INFINITY;
}

__global__ void __launch_bounds__(kThreads)
    backward(Rows probs, Rows dscores, Rows lse, Rows delta, Intervals intervals) {
  const int64_t t = blockIdx.x, h = blockIdx.y, b = blockIdx.z;
  float* p = probs.at(b, h, t);
  float* ds = dscores.at(b, h, t);
  const int64_t begin = intervals.first(b, t), end = intervals.last(b, t, begin);
  const float row_lse = *lse.at(b, h, t), row_delta = *delta.at(b, h, t);
  for (int64_t j = threadIdx.x; j < intervals.keys; j += kThreads) {
    const bool seen = j >= begin && j < end;
    const float prob = seen ? expf(p[j] - row_lse) : 0.0f;
    p[j] = prob;
    ds[j] = seen ? prob * (ds[j] - row_delta) : 0.0f;
  }
}

/// A block a row of [B, H, T, K].
dim3 grid(const Tensor& t) {
  return {grid_of(t.dim(2)), grid_of(t.dim(1)), grid_of(t.dim(0))};
}

}  // namespace

void softmax_forward(const SoftmaxArgs& args, Stream& stream) {
  if (args.scores.dim(0) * args.scores.dim(1) * args.scores.dim(2) == 0) return;
  forward<<<grid(args.scores), kThreads, 0, native(stream)>>>(
      Rows::of(args.scores), Rows::of(args.lse),
      Intervals::of(args.key_begin, args.key_end, 0, args.scores.dim(3)));
  WEFT_CALL(cudaGetLastError());
}

void softmax_backward(const SoftmaxGradArgs& args, Stream& stream) {
  if (args.probs.numel() == 0) return;
  backward<<<grid(args.probs), kThreads, 0, native(stream)>>>(
      Rows::of(args.probs), Rows::of(args.dscores), Rows::of(args.lse), Rows::of(args.delta),
      Intervals::of(args.key_begin, args.key_end, args.first_key, args.probs.dim(3)));
  WEFT_CALL(cudaGetLastError());
}

}  // namespace weft::cuda
