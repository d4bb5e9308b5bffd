// Forward in bf16 on tensor cores, sums in f32 (Dao, "FlashAttention-2", arXiv 2307.08691), under
// any intervals. A warp owns 16 queries and walks the keys in order: the same bits on every run.
#include "src/kernels/cuda/attention_mma.cuh"
#include "src/kernels/cuda/attention_ways.hpp"

namespace weft::cuda {
namespace {

template <int D>
struct ForwardTiles {
  MmaTile<D, kOwned> q;
  MmaTile<D, kStep> k[2], v[2];
  int2 seen[kTileThreads / kWarp];
};

template <int D>
__global__ void __launch_bounds__(kTileThreads, D == 64 ? 2 : 1)
    forward(const __grid_constant__ BlockView block, TokenRows out, RowNumbers lse) {
  extern __shared__ __align__(128) unsigned char memory[];
  auto& shared = *reinterpret_cast<ForwardTiles<D>*>(memory);
  // The last queries first: under a causal mask they have the most to do.
  const int begin = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kOwned;
  const int h = blockIdx.y, b = blockIdx.z, g = h / block.group;
  const int2 visible[2] = {block.interval(b, begin + own_row()),
                           block.interval(b, begin + own_row() + 8)};
  Seen seen;
  seen.add(visible[0]);
  seen.add(visible[1]);
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
    fetch(0);
  }
  close_copies();
  const float scale = block.scale * kLog2E;
  RowSums<D> result;
  RowSoftmax softmax;
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) fetch(step + 1);
    close_copies();
    await_copies<1>();  // all but the next step's
    __syncthreads();
    const int key = keys.x + step * kStep;
    if (seen.any(key, key + kStep)) {
      RowSums<kStep> score;
      add_scores(score, shared.q, warp_row(), shared.k[step % 2], 0);
      if (!seen.all(key, key + kStep)) {
#pragma unroll
        for (int n = 0; n < kStep / 8; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int column = key + 8 * n + own_column() + e % 2;
            const int2 own = visible[e / 2];
            if (column < own.x || column >= own.y) score.at[n][e] = -INFINITY;
          }
        }
      }
      const float correction[2] = {softmax.absorb(0, score, scale),
                                   softmax.absorb(1, score, scale)};
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) result.at[n][e] *= correction[e / 2];
      }
      add_product(result, score, shared.v[step % 2], 0);
    }
    __syncthreads();  // before a later step takes this one's place
  }
  merge_output(stage_in<D, kTileThreads / kWarp>(shared), result, softmax, block, out, lse, b, h,
               begin);
}

}  // namespace

bool attention_fits_tensor_cores(const AttentionBlock& block,
                                 std::initializer_list<const Tensor*> others) {
  const int64_t dim = block.q.dim(3);
  if (block.q.dtype != DType::bf16 || dim % kChunk != 0) return false;
  return rows_in_packs(dim, {&block.q, &block.k, &block.v}) && rows_in_packs(dim, others);
}

void attention_forward_on_tensor_cores(const AttentionForwardArgs& args, Stream& stream) {
  const AttentionBlock& block = args.block;
  const dim3 grid(grid_of(ceil_div(block.q.dim(1), kOwned)), grid_of(block.q.dim(2)),
                  grid_of(block.q.dim(0)));
  with_tile_width(block.q.dim(3), [&](auto width) {
    constexpr int D = decltype(width)::value;
    launch_tiles(forward<D>, grid, sizeof(ForwardTiles<D>), stream, view_of(block),
                 TokenRows::of(args.out), RowNumbers::of(args.lse));
  });
}

}  // namespace weft::cuda
