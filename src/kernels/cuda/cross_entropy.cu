// A block, a row, read once: what fits into shared memory is kept there for the second pass, which
// turns logits into their softmax; the rest is read again. The rows' losses are added by one block
// in a fixed order.
#include "src/kernels/cuda/elements.cuh"
#include "src/kernels/cuda/reduce.cuh"
#include "src/kernels/loss.hpp"

namespace weft::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;

constexpr float kLog2E = 1.4426950408889634f;

/// 2^x within 2 ulp, 0 for -inf.
__device__ float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// e^(x - most).
__device__ float exp_beside(float x, float most) {
  return exp2_of(x * kLog2E - __fmul_rn(most, kLog2E));
}

/// By what a sum of exp_beside(x, most) becomes one beside `other`: 1 to the bit between equals.
__device__ float rescale(float most, float other) {
  return exp2_of(__fmul_rn(most, kLog2E) - __fmul_rn(other, kLog2E));
}

/// A running maximum and the sum of exponents relative to it.
struct Online {
  float most = -INFINITY;
  float sum = 0;

  template <int W>
  __device__ void absorb(const float (&x)[W]) {
    float largest = x[0];
#pragma unroll
    for (int j = 1; j < W; ++j) largest = fmaxf(largest, x[j]);
    if (largest > most) {
      sum *= rescale(most, largest);
      most = largest;
    }
    if (most == -INFINITY) return;  // and no maximum to go by
#pragma unroll
    for (int j = 0; j < W; ++j) sum += exp_beside(x[j], most);
  }
};

struct Merge {
  __device__ Online operator()(const Online& a, const Online& b) const {
    const float most = fmaxf(a.most, b.most);
    if (most == -INFINITY) return {};
    return {most, a.sum * rescale(a.most, most) + b.sum * rescale(b.most, most)};
  }
};

/// Every lane gets the whole of the warp.
__device__ Online warp_merge(Online mine) {
  const Merge merge;
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    // The lower lane's value stands first on both sides, so that both get the same bits.
    const Online other{__shfl_xor_sync(0xFFFFFFFFu, mine.most, offset),
                       __shfl_xor_sync(0xFFFFFFFFu, mine.sum, offset)};
    mine = (threadIdx.x & offset) != 0 ? merge(other, mine) : merge(mine, other);
  }
  return mine;
}

/// Every thread gets the block's maximum and sum.
__device__ Online block_merge(Online mine, Online* shared) {
  mine = warp_merge(mine);
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = mine;
  __syncthreads();
  const int lane = threadIdx.x % kWarp;
  return warp_merge(lane < kWarps ? shared[lane] : Online{});
}

struct Rows {
  const int32_t* labels;
  int64_t stride, rows;
  int64_t vocab_begin, vocab;
  int packs, kept;  // of a row; of them in shared memory
  float scale;
  bool gradient;
};

/// The maximum and the sum of this thread's packs; the first ones are kept.
template <class T, int W>
__device__ Online first_pass(const Pack<T, W>* row, Pack<T, W>* kept, const Rows& a) {
  constexpr int kBatch = 4;  // loads in flight
  Online mine;
  for (int begin = threadIdx.x; begin < a.packs; begin += kBatch * kThreads) {
    Pack<T, W> batch[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (begin + i * kThreads < a.packs) batch[i] = row[begin + i * kThreads];
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int at = begin + i * kThreads;
      if (at >= a.packs) break;
      if (at < a.kept) kept[at] = batch[i];
      float x[W];
#pragma unroll
      for (int j = 0; j < W; ++j) x[j] = to_float(batch[i].value[j]);
      mine.absorb(x);
    }
  }
  return mine;
}

template <class T, int W>
__global__ void __launch_bounds__(kThreads) shard_rows(float* statistics, T* logits, const Rows a) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ Online shared[kWarps];
  auto* kept = reinterpret_cast<Pack<T, W>*>(memory);
  T* values = logits + blockIdx.x * a.stride;
  auto* row = reinterpret_cast<Pack<T, W>*>(values);
  const int label = a.labels[blockIdx.x];
  const auto put_statistics = [&](float largest, float sum, float target) {
    float* at = statistics + blockIdx.x;
    at[0] = largest;
    at[a.rows] = sum;
    at[2 * a.rows] = target;
  };
  if (label < 0) {
    const float zeros[W] = {};
    for (int at = threadIdx.x; a.gradient && at < a.packs; at += kThreads) {
      store<W>(values + int64_t{at} * W, zeros);
    }
    if (threadIdx.x == 0) put_statistics(0, 0, 0);
    return;
  }
  const bool known = label < a.vocab;  // an id past the vocabulary makes the loss NaN
  const int64_t at_label = label - a.vocab_begin;
  const bool own = at_label >= 0 && at_label < int64_t{a.packs} * W;
  const float target = !known ? NAN : own ? to_float(values[at_label]) : 0.0f;
  // The barrier inside is after every read of the target and before any write.
  const Online total = block_merge(first_pass<T, W>(row, kept, a), shared);
  if (threadIdx.x == 0) put_statistics(total.most, known ? total.sum : NAN, target);
  if (!a.gradient) return;
  const float factor = a.scale / total.sum;
  // Backwards: the packs that were not kept are the last ones read, and still in the cache.
  for (int at = a.packs - 1 - static_cast<int>(threadIdx.x); at >= 0; at -= kThreads) {
    const Pack<T, W> pack = at < a.kept ? kept[at] : row[at];
    float x[W];
#pragma unroll
    for (int j = 0; j < W; ++j) x[j] = exp_beside(to_float(pack.value[j]), total.most) * factor;
    store<W>(values + int64_t{at} * W, x);
  }
}

struct Combined {
  const float* statistics;  // [ranks, 3, rows]
  const int32_t* labels;
  int64_t stride, rows, vocab_begin;
  int ranks, rank;
  int packs;
  float scale;
  bool gradient;

  __device__ float of(int p, int which) const {
    return statistics[(int64_t{p} * kRowStatistics + which) * rows + blockIdx.x];
  }
};

/// A block, a row. Where the other ranks add nothing the row is as it should be, but for the
/// label's logit: that is made from its f32 value, since softmax - 1 of a rounded softmax would
/// have lost its digits.
template <class T, int W>
__global__ void __launch_bounds__(kThreads)
    combine_rows(double* losses, T* logits, const Combined a) {
  const int label = a.labels[blockIdx.x];
  if (label < 0) {
    if (threadIdx.x == 0) losses[blockIdx.x] = 0;
    return;
  }
  float most = -INFINITY, sum = 0, target = 0;
  for (int p = 0; p < a.ranks; ++p) most = fmaxf(most, a.of(p, 0));
  for (int p = 0; p < a.ranks; ++p) {
    sum += a.of(p, 1) * rescale(a.of(p, 0), most);
    target += a.of(p, 2);
  }
  if (threadIdx.x == 0) {
    constexpr double kLn2 = 0.693147180559945309;
    losses[blockIdx.x] = (log2(static_cast<double>(sum)) + __fmul_rn(most, kLog2E)) * kLn2 - target;
  }
  if (!a.gradient) return;
  T* values = logits + blockIdx.x * a.stride;
  const float share = a.of(a.rank, 1) * rescale(a.of(a.rank, 0), most) / sum;
  const bool again = share != 1;  // also where it is NaN
  for (int at = threadIdx.x; again && at < a.packs; at += kThreads) {
    float x[W];
    load<W>(values + int64_t{at} * W, x);
#pragma unroll
    for (int j = 0; j < W; ++j) x[j] *= share;
    store<W>(values + int64_t{at} * W, x);
  }
  if (again) __syncthreads();  // the label's logit is written last
  const int64_t at_label = label - a.vocab_begin;
  if (threadIdx.x == 0 && at_label >= 0 && at_label < int64_t{a.packs} * W) {
    values[at_label] = from_float<T>(exp_beside(target, most) * (a.scale / sum) - a.scale);
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

/// Packs of a row that are kept: with a second pass to come, at most what leaves room for a second
/// block, which computes while this one loads.
template <class T, int W>
int kept_packs(const CrossEntropyShardArgs& args, int64_t packs) {
  if (!args.gradient) return 0;
  int device = 0, most = 0;
  WEFT_CALL(cudaGetDevice(&device));
  WEFT_CALL(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device));
  const int64_t room = most / 2 - 2048;  // the kernel's own variables, and what CUDA takes
  return static_cast<int>(std::min(packs, room / static_cast<int64_t>(sizeof(Pack<T, W>))));
}

}  // namespace

void cross_entropy_shard(const CrossEntropyShardArgs& args, Stream& stream) {
  const int64_t n = args.logits.dim(0), width = args.logits.dim(1);
  if (n == 0) return;
  visit_element(args.logits.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_width<T>(rows_in_packs(width, {&args.logits}), [&](auto w) {
      constexpr int W = decltype(w)::value;
      const int64_t packs = width / W;
      WEFT_CHECK(width <= INT32_MAX - 4 * kThreads * W, "a vocabulary of ", width);
      const Rows a{.labels = elements<int32_t>(args.labels),
                   .stride = args.logits.stride[0],
                   .rows = n,
                   .vocab_begin = args.vocab_begin,
                   .vocab = args.vocab,
                   .packs = static_cast<int>(packs),
                   .kept = kept_packs<T, W>(args, packs),
                   .scale = static_cast<float>(args.scale),
                   .gradient = args.gradient};
      const int bytes = a.kept * static_cast<int>(sizeof(Pack<T, W>));
      WEFT_CALL(cudaFuncSetAttribute(shard_rows<T, W>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     bytes));
      shard_rows<T, W><<<grid_of(n), kThreads, bytes, native(stream)>>>(
          elements<float>(args.statistics), elements<T>(args.logits), a);
    });
  });
  WEFT_CALL(cudaGetLastError());
}

void cross_entropy_combine(const CrossEntropyCombineArgs& args, Stream& stream) {
  const int64_t n = args.logits.dim(0), width = args.logits.dim(1);
  if (n == 0) return;
  double* losses = reinterpret_cast<double*>(
      cuda_stream(stream).workspace(n * static_cast<int64_t>(sizeof(double))));
  visit_element(args.logits.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_width<T>(rows_in_packs(width, {&args.logits}), [&](auto w) {
      constexpr int W = decltype(w)::value;
      WEFT_CHECK(width <= INT32_MAX - kThreads * W, "a vocabulary of ", width);
      const Combined a{.statistics = elements<float>(args.statistics),
                       .labels = elements<int32_t>(args.labels),
                       .stride = args.logits.stride[0],
                       .rows = n,
                       .vocab_begin = args.vocab_begin,
                       .ranks = static_cast<int>(args.statistics.dim(0)),
                       .rank = args.rank,
                       .packs = static_cast<int>(width / W),
                       .scale = static_cast<float>(args.scale),
                       .gradient = args.gradient};
      combine_rows<T, W>
          <<<grid_of(n), kThreads, 0, native(stream)>>>(losses, elements<T>(args.logits), a);
    });
  });
  WEFT_CALL(cudaGetLastError());
  if (!args.loss_sum) return;
  add_losses<<<1, kThreads, 0, native(stream)>>>(elements<double>(args.loss_sum), losses, n);
  WEFT_CALL(cudaGetLastError());
}

}  // namespace weft::cuda
