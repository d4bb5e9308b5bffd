// Backward in f32 from the final log-sum-exp, as two kernels: one owns queries and walks keys (dq),
// one owns keys and walks queries (dk, dv). Seven products instead of five, but every sum has one
// owner and a fixed order: no atomics, the same bits on every run.
#include "src/kernels/cuda/attention_tiles.cuh"
#include "src/kernels/cuda/attention_ways.hpp"

namespace weft::cuda {
namespace {

template <int D>
struct BackwardShared {
  RowTile<D> q, k, v, dout;
  ScoreTile p;
  int2 interval[kTile];  // of the queries of the tile
  float lse[kTile];
  float delta[kTile];

  /// The row of query t of one head: what a thread below kTile loads.
  __device__ void load_row(const Gradients& a, int b, int h, int t, int queries, int2 keys) {
    const bool inside = t < queries;
    interval[threadIdx.x] = keys;
    lse[threadIdx.x] = inside ? a.lse.at(b, h, t) : 0;
    delta[threadIdx.x] = inside ? a.delta.at(b, h, t) : 0;
  }

  /// P (dP - delta); 0 where P is, whatever stands beside it.
  __device__ float score_gradient(int query, float p, float dp) const {
    return p == 0 ? 0.0f : p * (dp - delta[query]);
  }

  /// P of (query of the tile, key), from its score; 0 where hidden.
  __device__ float probability(int query, int key, float score, float scale) const {
    const int2 visible = interval[query];
    const bool hidden = key < visible.x || key >= visible.y || lse[query] == -INFINITY;
    return hidden ? 0.0f : expf(score * scale - lse[query]);
  }
};

/// dq of 64 queries of one head.
template <int D>
__global__ void __launch_bounds__(kTileThreads, 1)
    query_gradient(const __grid_constant__ BlockView block, const __grid_constant__ Gradients a) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<BackwardShared<D>*>(memory);
  const int begin = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kTile;
  const int h = blockIdx.y, b = blockIdx.z, g = h / block.group;
  int low = 0, high = 0;  // keys that this thread's query sees
  if (threadIdx.x < kTile) {
    const int t = begin + static_cast<int>(threadIdx.x);
    const int2 keys = block.interval(b, t);
    shared.load_row(a, b, h, t, block.queries, keys);
    low = keys.x;
    high = keys.y;
  }
  shared.q.load(block.q, b, h, begin, block.queries, block.dim);
  shared.dout.load(a.dout, b, h, begin, block.queries, block.dim);
  RowSum<D> dq;
  for (int key = 0; key < block.keys; key += kTile) {
    if (!__syncthreads_or(sees({low, high}, key, key + kTile))) continue;
    shared.k.load(block.k, b, g, key, block.keys, block.dim);
    shared.v.load(block.v, b, g, key, block.keys, block.dim);
    __syncthreads();
    float score[kOwn][kOwn], dp[kOwn][kOwn];
    product_abt(shared.q, shared.k, score);
    product_abt(shared.dout, shared.v, dp);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int query = own_row(i);
#pragma unroll
      for (int j = 0; j < kOwn; ++j) {
        const float p = shared.probability(query, key + own_column(j), score[i][j], block.scale);
        shared.p.at[query][own_column(j)] = shared.score_gradient(query, p, dp[i][j]);
      }
    }
    __syncwarp();  // a row of p is written and read by one half of a warp
    dq.add_product(shared.p, shared.k);
  }
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int t = begin + own_row(i);
    if (t >= block.queries) continue;
    dq.merge_row(i, a.dq.f32(a.dq.at(b, t, h)), block.dim,
                 [&](float total, float value) { return total + block.scale * value; });
  }
}

/// dk and dv of 64 keys of one kv head: over its query heads, over the queries.
template <int D>
__global__ void __launch_bounds__(kTileThreads, 1)
    key_gradients(const __grid_constant__ BlockView block, const __grid_constant__ Gradients a) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<BackwardShared<D>*>(memory);
  const int key = static_cast<int>(blockIdx.x) * kTile;
  const int g = blockIdx.y, b = blockIdx.z;
  shared.k.load(block.k, b, g, key, block.keys, block.dim);
  shared.v.load(block.v, b, g, key, block.keys, block.dim);
  RowSum<D> dk, dv;
  for (int begin = 0; begin < block.queries; begin += kTile) {
    const int t = begin + static_cast<int>(threadIdx.x);
    int2 keys = {0, 0};
    if (threadIdx.x < kTile) keys = block.interval(b, t);
    if (!__syncthreads_or(sees(keys, key, key + kTile))) continue;
    for (int h = g * block.group; h < (g + 1) * block.group; ++h) {
      __syncthreads();  // nobody reads the last tiles any more
      if (threadIdx.x < kTile) {
        shared.load_row(a, b, h, t, block.queries, keys);
      }
      shared.q.load(block.q, b, h, begin, block.queries, block.dim);
      shared.dout.load(a.dout, b, h, begin, block.queries, block.dim);
      __syncthreads();
      float score[kOwn][kOwn], dp[kOwn][kOwn];  // [key, query]
      product_abt(shared.k, shared.q, score);
      product_abt(shared.v, shared.dout, dp);
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
#pragma unroll
        for (int j = 0; j < kOwn; ++j) {
          const int query = own_column(j);
          const float p = shared.probability(query, key + own_row(i), score[i][j], block.scale);
          shared.p.at[own_row(i)][query] = p;
          dp[i][j] = shared.score_gradient(query, p, dp[i][j]);
        }
      }
      __syncwarp();  // a row of p is written and read by one half of a warp
      dv.add_product(shared.p, shared.dout);
      __syncwarp();
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
#pragma unroll
        for (int j = 0; j < kOwn; ++j) shared.p.at[own_row(i)][own_column(j)] = dp[i][j];
      }
      __syncwarp();
      dk.add_product(shared.p, shared.q);
    }
  }
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int t = key + own_row(i);
    if (t >= block.keys) continue;
    dk.merge_row(i, a.dk.f32(a.dk.at(b, t, g)), block.dim,
                 [&](float total, float value) { return total + block.scale * value; });
    dv.merge_row(i, a.dv.f32(a.dv.at(b, t, g)), block.dim,
                 [](float total, float value) { return total + value; });
  }
}

}  // namespace

void attention_backward_on_tiles(const AttentionBackwardArgs& args, Stream& stream) {
  const AttentionBlock& block = args.block;
  const Gradients a = Gradients::of(args);
  const unsigned batch = grid_of(block.q.dim(0));
  const dim3 queries(grid_of(ceil_div(block.q.dim(1), kTile)), grid_of(block.q.dim(2)), batch);
  const dim3 keys(grid_of(ceil_div(block.k.dim(1), kTile)), grid_of(block.k.dim(2)), batch);
  with_tile_width(block.q.dim(3), [&](auto width) {
    constexpr int D = decltype(width)::value;
    launch_tiles(query_gradient<D>, queries, sizeof(BackwardShared<D>), stream, view_of(block), a);
    launch_tiles(key_gradients<D>, keys, sizeof(BackwardShared<D>), stream, view_of(block), a);
  });
}

}  // namespace weft::cuda
