// A block, a row, read once: what fits into shared memory is kept there for the second pass, which
// turns logits into their gradient; the rest is read again. The rows' losses are added by one block
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

/// A running maximum, in units of log2, and the sum of exponents relative to it.
struct Online {
  float most = -INFINITY;
  float sum = 0;

  template <int W>
  __device__ void absorb(const float (&x)[W]) {
    float largest = x[0];
#pragma unroll
    for (int j = 1; j < W; ++j) largest = fmaxf(largest, x[j]);
    largest *= kLog2E;
    if (largest > most) {
      sum *= exp2_of(most - largest);
      most = largest;
    }
    if (most == -INFINITY) return;  // and no maximum to go by
#pragma unroll
    for (int j = 0; j < W; ++j) sum += exp2_of(x[j] * kLog2E - most);
  }
};

struct Merge {
  __device__ Online operator()(const Online& a, const Online& b) const {
    const float most = fmaxf(a.most, b.most);
    if (most == -INFINITY) return {};
    return {most, a.sum * exp2_of(a.most - most) + b.sum * exp2_of(b.most - most)};
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
  int64_t stride;
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
__global__ void __launch_bounds__(kThreads) rows(double* losses, T* logits, const Rows a) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ Online shared[kWarps];
  auto* kept = reinterpret_cast<Pack<T, W>*>(memory);
  T* values = logits + blockIdx.x * a.stride;
  auto* row = reinterpret_cast<Pack<T, W>*>(values);
  const int label = a.labels[blockIdx.x];
  if (label < 0) {
    const float zeros[W] = {};
    for (int at = threadIdx.x; a.gradient && at < a.packs; at += kThreads) {
      store<W>(values + int64_t{at} * W, zeros);
    }
    if (threadIdx.x == 0) losses[blockIdx.x] = 0;
    return;
  }
  const bool known = label < a.packs * W;  // an id past the vocabulary makes the loss NaN
  const float target = known ? to_float(values[label]) : NAN;
  // The barrier inside is after every read of the target and before any write.
  const Online total = block_merge(first_pass<T, W>(row, kept, a), shared);
  if (threadIdx.x == 0) {
    constexpr double kLn2 = 0.693147180559945309;
    losses[blockIdx.x] = (log2(static_cast<double>(total.sum)) + total.most) * kLn2 - target;
  }
  if (!a.gradient) return;
  const float factor = known ? a.scale / total.sum : NAN;
  // Backwards: the packs that were not kept are the last ones read, and still in the cache.
  for (int at = a.packs - 1 - static_cast<int>(threadIdx.x); at >= 0; at -= kThreads) {
    const Pack<T, W> pack = at < a.kept ? kept[at] : row[at];
    float x[W];
#pragma unroll
    for (int j = 0; j < W; ++j) {
      x[j] = exp2_of(to_float(pack.value[j]) * kLog2E - total.most) * factor;
    }
    if (at == label / W) {
#pragma unroll
      for (int j = 0; j < W; ++j) x[j] -= j == label % W ? a.scale : 0.0f;
    }
    store<W>(values + int64_t{at} * W, x);
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
int kept_packs(const CrossEntropyArgs& args, int64_t packs) {
  if (!args.gradient) return 0;
  int device = 0, most = 0;
  WEFT_CALL(cudaGetDevice(&device));
  WEFT_CALL(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device));
  const int64_t room = most / 2 - 2048;  // the kernel's own variables, and what CUDA takes
  return static_cast<int>(std::min(packs, room / static_cast<int64_t>(sizeof(Pack<T, W>))));
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
      const int64_t packs = vocab / W;
      WEFT_CHECK(vocab <= INT32_MAX - 4 * kThreads * W, "a vocabulary of ", vocab);
      const Rows a{elements<int32_t>(args.labels), args.logits.stride[0],
                   static_cast<int>(packs),        kept_packs<T, W>(args, packs),
                   static_cast<float>(args.scale), args.gradient};
      const int bytes = a.kept * static_cast<int>(sizeof(Pack<T, W>));
      WEFT_CALL(
          cudaFuncSetAttribute(rows<T, W>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
      rows<T, W>
          <<<grid_of(n), kThreads, bytes, native(stream)>>>(losses, elements<T>(args.logits), a);
    });
  });
  WEFT_CALL(cudaGetLastError());
  add_losses<<<1, kThreads, 0, native(stream)>>>(elements<double>(args.loss_sum), losses, n);
  WEFT_CALL(cudaGetLastError());
}

}  // namespace weft::cuda
