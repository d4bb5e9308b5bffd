// Gradients of the diagonal kinds, and sums over the tokens of a chunk that gradients of decays are
// made of (docs/state_mixers.md, Gradients of decays).
#pragma once

#include "src/kernels/cuda/state_carry.cuh"

namespace weft::cuda::state {

template <class T>
struct GradientArgs {
  Rows<const T> q, k, v, dout;
  Rows<float> dq, dk, dv;
  float* dlog_decay;                             // null: not wanted
  int64_t decay_batch, decay_token, decay_head;  // strides
  float scale;

  static GradientArgs of(const StateGradients& g, const Tensor& q, const Tensor& dout, double scale,
                         const StateTokens& tokens);

  /// Of token t (of the shard), the first lane.
  __device__ float* dlog(const ChunkOf& chunk, int t) const {
    return dlog_decay + chunk.b * decay_batch + (chunk.begin + t) * decay_token +
           chunk.h * decay_head;
  }
};

template <class T>
GradientArgs<T> GradientArgs<T>::of(const StateGradients& g, const Tensor& q, const Tensor& dout,
                                    double scale, const StateTokens& tokens) {
  const Tensor& log = g.dlog_decay;
  GradientArgs a{Rows<const T>::of(q),    Rows<const T>::of(tokens.k), Rows<const T>::of(tokens.v),
                 Rows<const T>::of(dout), Rows<float>::of(g.dq),       Rows<float>::of(g.dk),
                 Rows<float>::of(g.dv)};
  if (log) {
    a.dlog_decay = elements<float>(log);
    a.decay_batch = log.stride[0], a.decay_token = log.stride[1], a.decay_head = log.stride[2];
  }
  a.scale = static_cast<float>(scale);
  return a;
}

/// dq, and of dk, dv and dlog_decay what needs no gradient of the leaving state; `entering` of
/// every chunk.
template <class T>
void local_gradients(const Shard& s, int64_t heads, const GradientArgs<T>& args,
                     ChunkMatrices<const float> entering, Stream& stream);
/// The same for one decay a row of the state.
template <class T>
void local_lane_gradients(const Shard& s, int64_t heads, const GradientArgs<T>& args,
                          ChunkMatrices<const float> entering, Stream& stream);

/// Adds the rest, from the gradient of the state that leaves every chunk of the range.
template <class T>
void leaving_gradients(const Shard& s, int64_t heads, const GradientArgs<T>& args,
                       ChunkMatrices<const float> entering, ChunkMatrices<const T> leaving,
                       CarryRange range, Stream& stream);

/// The same for one decay a row of the state.
template <class T>
void leaving_lane_gradients(const Shard& s, int64_t heads, const GradientArgs<T>& args,
                            ChunkMatrices<const float> entering, ChunkMatrices<const T> leaving,
                            CarryRange range, Stream& stream);

/// The first warp: f(t, sum of value(u) over the tokens u >= t of a chunk).
template <class V, class F>
__device__ void sums_from(V&& value, F&& f) {
  if (threadIdx.x >= kWarp) return;
  const int lane = threadIdx.x;
  const double first = value(2 * lane), second = value(2 * lane + 1);
  double sum = first + second;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const double later = __shfl_down_sync(0xFFFFFFFFu, sum, offset);
    if (lane + offset < kWarp) sum += later;
  }
  double after = __shfl_down_sync(0xFFFFFFFFu, sum, 1);
  if (lane == kWarp - 1) after = 0;
  f(2 * lane, after + second + first);
  f(2 * lane + 1, after + second);
}

/// The first warp: f(t, sum of value(u) over the tokens u < t).
template <class V, class F>
__device__ void sums_before(V&& value, F&& f) {
  if (threadIdx.x >= kWarp) return;
  const int lane = threadIdx.x;
  const double first = value(2 * lane);
  double sum = first + value(2 * lane + 1);
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const double earlier = __shfl_up_sync(0xFFFFFFFFu, sum, offset);
    if (lane >= offset) sum += earlier;
  }
  double before = __shfl_up_sync(0xFFFFFFFFu, sum, 1);
  if (lane == 0) before = 0;
  f(2 * lane, before);
  f(2 * lane + 1, before + first);
}

/// crossing[i] = sum of pair(r, j) over j < i <= r. `pair` is used up; it is 0 for j >= r. All
/// threads of the block call it, behind a barrier; it ends with one.
__device__ inline void sum_crossing_pairs(Tile<float>& pair, float (&crossing)[kTile]) {
  const int j = threadIdx.x % kTile, block = static_cast<int>(threadIdx.x) / kTile;
  float sum = 0;  // over the rows of a block from r on
  for (int r = (block + 1) * kBlock - 1; r >= block * kBlock; --r) {
    sum += pair.at(r, j);
    pair.at(r, j) = sum;
  }
  __syncthreads();
  const int i = static_cast<int>(threadIdx.x) / 4;
  float total = 0;
  for (int column = threadIdx.x % 4; column < i; column += 4) {
    float below = pair.at(i, column);
    for (int r = (i / kBlock + 1) * kBlock; r < kTile; r += kBlock) below += pair.at(r, column);
    total += below;
  }
  total = warp_reduce<4>(total, cuda::Sum{});
  if (threadIdx.x % 4 == 0) crossing[i] = total;
  __syncthreads();
}

}  // namespace weft::cuda::state
