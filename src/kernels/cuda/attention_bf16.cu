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

/// Online softmax of the lane's two rows, in powers of two; the four lanes of a row have the same
/// maximum and a part of the sum each.
struct RowSoftmax {
  float most[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};

  /// Scores of row `half`, to be multiplied by `scale` into units of log2, become exponentials
  /// relative to the running maximum. Returns what the sums so far are multiplied by.
  __device__ float absorb(int half, RowSums<kStep>& score, float scale) {
    float tile_most = -INFINITY;
#pragma unroll
    for (int n = 0; n < kStep / 8; ++n) {
      tile_most = fmaxf(tile_most, fmaxf(score.at[n][2 * half], score.at[n][2 * half + 1]));
    }
    const float new_most = fmaxf(most[half], quad_reduce(tile_most, Max{}) * scale);
    const bool hidden = new_most == -INFINITY;  // nothing seen so far: no maximum to go by
    const float base = hidden ? 0.0f : new_most;
    float tile_sum = 0;
#pragma unroll
    for (int n = 0; n < kStep / 8; ++n) {
#pragma unroll
      for (int e = 2 * half; e < 2 * half + 2; ++e) {
        score.at[n][e] = power_of_two(fmaf(score.at[n][e], scale, -base));
        tile_sum += score.at[n][e];
      }
    }
    const float correction = power_of_two(most[half] - base);
    sum[half] = sum[half] * correction + tile_sum;
    most[half] = new_most;
    return correction;
  }
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
      score.add_transposed(shared.q, warp_row(), shared.k[step % 2], 0);
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
      result.add_product(score, shared.v[step % 2], 0);
    }
    __syncthreads();  // before a later step takes this one's place
  }
  // Merge into the running normalised (out, lse).
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int t = begin + own_row() + 8 * half;
    const float sum = quad_reduce(softmax.sum[half], Sum{});
    const bool inside = t < block.queries && sum > 0;
    float* total_lse = &lse.at(b, h, inside ? t : 0);
    const float before = inside ? *total_lse : 0;
    __syncwarp();  // every lane has read it
    if (!inside) continue;
    const float block_lse = softmax.most[half] * kLn2 + logf(sum);
    const float gap = block_lse - before;  // +inf when this is the first block seen
    const float share = 1 / (1 + expf(-gap)), weight = share / sum;
    result.merge_row(half, out.f32(out.at(b, t, h)), block.dim, [&](float total, float value) {
      return total * (1 - share) + value * weight;
    });
    if (lane() % 4 == 0) {
      *total_lse = gap > 0 ? block_lse + log1pf(expf(-gap)) : before + log1pf(expf(gap));
    }
  }
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
