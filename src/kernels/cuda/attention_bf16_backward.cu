// Backward in bf16 on tensor cores from the final log-sum-exp, as two kernels: one owns queries and
// walks keys (dq), one owns keys and walks queries (dk, dv). Seven products instead of five, but
// every sum has one owner and a fixed order: no atomics, the same bits on every run.
#include "src/kernels/cuda/attention_mma.cuh"
#include "src/kernels/cuda/attention_ways.hpp"

namespace weft::cuda {
namespace {

constexpr int kHalf = kStep / 2;  // rows that are computed with at a time: of two products

template <int D>
struct QueryTiles {
  MmaTile<D, kOwned> q, dout;
  MmaTile<D, kStep> k[2], v[2];
  int2 seen[kTileThreads / kWarp];
};

/// dq of 128 queries of one head.
template <int D>
__global__ void __launch_bounds__(kTileThreads, D == 64 ? 2 : 1)
    query_gradient(const __grid_constant__ BlockView block, const __grid_constant__ Gradients a) {
  extern __shared__ __align__(128) unsigned char memory[];
  auto& shared = *reinterpret_cast<QueryTiles<D>*>(memory);
  const int begin = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kOwned;
  const int h = blockIdx.y, b = blockIdx.z, g = h / block.group;
  const QueryRow rows[2] = {QueryRow::of(block, a, b, h, begin + own_row()),
                            QueryRow::of(block, a, b, h, begin + own_row() + 8)};
  Seen seen;
  seen.add(rows[0].keys);
  seen.add(rows[1].keys);
  seen.share();
  const int2 keys = seen_by_block(seen, shared.seen);
  const int steps = keys.x < keys.y ? (keys.y - keys.x + kStep - 1) / kStep : 0;
  const auto fetch = [&](int step) {
    const int key = keys.x + step * kStep;
    shared.k[step % 2].fetch(block.k, b, g, key, keys.y, block.dim);
    shared.v[step % 2].fetch(block.v, b, g, key, keys.y, block.dim);
  };
  if (steps > 0) {
    shared.q.fetch(block.q, b, h, begin, block.queries, block.dim);
    shared.dout.fetch(a.dout, b, h, begin, block.queries, block.dim);
    fetch(0);
  }
  close_copies();
  const float scale = block.scale * kLog2E;
  RowSums<D> dq;
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) fetch(step + 1);
    close_copies();
    await_copies<1>();  // all but the next step's
    __syncthreads();
#pragma unroll 1
    for (int from = 0; from < kStep; from += kHalf) {
      const int key = keys.x + step * kStep + from;
      if (!seen.any(key, key + kHalf)) continue;
      RowSums<kHalf> score, dp;
      add_scores(score, shared.q, warp_row(), shared.k[step % 2], from);
      add_scores(dp, shared.dout, warp_row(), shared.v[step % 2], from);
#pragma unroll
      for (int n = 0; n < kHalf / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const QueryRow& row = rows[e / 2];
          const bool sees = row.sees(key + 8 * n + own_column() + e % 2);
          const float p = sees ? power_of_two(fmaf(score.at[n][e], scale, -row.lse)) : 0.0f;
          dp.at[n][e] = p * (dp.at[n][e] - row.delta);
        }
      }
      add_product(dq, dp, shared.k[step % 2], from);
    }
    __syncthreads();  // before a later step takes this one's place
  }
  RowStage<D>& stage = stage_in<D, kTileThreads / kWarp>(shared);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    stage.put(dq, half, block.scale, begin + own_row() + 8 * half < block.queries ? 1 : -1);
  }
  stage.merge(a.dq, b, begin + warp_row(), h, block.dim);
}

template <int D>
struct KeyTiles {
  MmaTile<D, kOwned> k, v;
  MmaTile<D, kStep> q[2], dout[2];
  QueryRow rows[2][kStep];
  int first, last;  // queries that see any of the keys
};

/// dk and dv of 128 keys of one kv head: over the queries, and for each step over its query heads.
template <int D>
__global__ void __launch_bounds__(kTileThreads, 1)
    key_gradients(const __grid_constant__ BlockView block, const __grid_constant__ Gradients a) {
  extern __shared__ __align__(128) unsigned char memory[];
  auto& shared = *reinterpret_cast<KeyTiles<D>*>(memory);
  const int begin = static_cast<int>(blockIdx.x) * kOwned;
  const int end = min(begin + kOwned, block.keys);
  const int g = blockIdx.y, b = blockIdx.z;
  if (threadIdx.x == 0) shared.first = INT32_MAX, shared.last = 0;
  __syncthreads();
  for (int t = threadIdx.x; t < block.queries; t += kTileThreads) {
    if (!sees(block.interval(b, t), begin, end)) continue;
    atomicMin(&shared.first, t);
    atomicMax(&shared.last, t + 1);
  }
  __syncthreads();
  const int first = shared.first, last = shared.last;
  // A step is 64 queries of one head; the heads of the group come one after the other.
  const int steps =
      first < last ? (last - first + kStep - 1) / kStep * static_cast<int>(block.group) : 0;
  const auto fetch = [&](int step) {
    const int query = first + step / block.group * kStep, h = g * block.group + step % block.group;
    shared.q[step % 2].fetch(block.q, b, h, query, last, block.dim);
    shared.dout[step % 2].fetch(a.dout, b, h, query, last, block.dim);
    if (threadIdx.x < kStep) {
      const int t = query + static_cast<int>(threadIdx.x);
      shared.rows[step % 2][threadIdx.x] =
          t < last ? QueryRow::of(block, a, b, h, t) : QueryRow{{0, 0}, 0, 0};
    }
  };
  if (steps > 0) {
    shared.k.fetch(block.k, b, g, begin, end, block.dim);
    shared.v.fetch(block.v, b, g, begin, end, block.dim);
    fetch(0);
  }
  close_copies();
  const float scale = block.scale * kLog2E;
  const int key = begin + warp_row();
  RowSums<D> dk, dv;
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) fetch(step + 1);
    close_copies();
    await_copies<1>();  // all but the next step's
    __syncthreads();
    const auto& q = shared.q[step % 2];
    const auto& dout = shared.dout[step % 2];
#pragma unroll 1
    for (int from = 0; from < kStep; from += kHalf) {
      const QueryRow* rows = &shared.rows[step % 2][from];
      if (!__any_sync(0xFFFFFFFFu, sees(rows[lane()].keys, key, key + kWarpRows))) continue;
      RowSums<kHalf> score, dp;  // [16 keys, 32 queries]
      add_scores(score, shared.k, warp_row(), q, from);
      add_scores(dp, shared.v, warp_row(), dout, from);
#pragma unroll
      for (int n = 0; n < kHalf / 8; ++n) {
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
          const QueryRow row = rows[8 * n + own_column() + odd];
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float& p = score.at[n][2 * half + odd];
            float& ds = dp.at[n][2 * half + odd];
            const bool seen = row.sees(begin + own_row() + 8 * half);
            p = seen ? power_of_two(fmaf(p, scale, -row.lse)) : 0.0f;
            ds = p * (ds - row.delta);
          }
        }
      }
      add_product(dv, score, dout, from);
      add_product(dk, dp, q, from);
    }
    __syncthreads();  // before a later step takes this one's place
  }
  RowStage<D>& stage = stage_in<D, kTileThreads / kWarp>(shared);
  const auto add = [&](const RowSums<D>& sums, float factor, const TokenRows& target) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      stage.put(sums, half, factor, begin + own_row() + 8 * half < block.keys ? 1 : -1);
    }
    stage.merge(target, b, begin + warp_row(), g, block.dim);
  };
  add(dk, block.scale, a.dk);
  add(dv, 1, a.dv);
}

}  // namespace

void attention_backward_on_tensor_cores(const AttentionBackwardArgs& args, Stream& stream) {
  const AttentionBlock& block = args.block;
  const Gradients a = Gradients::of(args);
  const unsigned batch = grid_of(block.q.dim(0));
  const dim3 queries(grid_of(ceil_div(block.q.dim(1), kOwned)), grid_of(block.q.dim(2)), batch);
  const dim3 keys(grid_of(ceil_div(block.k.dim(1), kOwned)), grid_of(block.k.dim(2)), batch);
  with_tile_width(block.q.dim(3), [&](auto width) {
    constexpr int D = decltype(width)::value;
    launch_tiles(query_gradient<D>, queries, sizeof(QueryTiles<D>), stream, view_of(block), a);
    launch_tiles(key_gradients<D>, keys, sizeof(KeyTiles<D>), stream, view_of(block), a);
  });
}

}  // namespace weft::cuda
