// Forward in f32 with an online softmax; the rows of delta. One block of threads owns 64 queries of
// one head and walks the keys in order, so the result has the same bits on every run.
#include "src/kernels/attention.hpp"

#include "src/kernels/cuda/attention_tiles.cuh"
#include "src/kernels/cuda/attention_ways.hpp"

namespace weft::cuda {
namespace {

template <int D>
struct ForwardShared {
  RowTile<D> q;
  RowTile<D> v;
  union {  // scores are made from k before they take its place
    RowTile<D> k;
    ScoreTile p;
  };
  int2 interval[kTile];
};

/// Smallest interval that holds what any query of the tile sees.
__device__ int2 hull(const int2 (&interval)[kTile]) {
  int low = INT32_MAX, high = 0;
  for (const int2 keys : interval) {
    if (keys.x == keys.y) continue;
    low = min(low, keys.x);
    high = max(high, keys.y);
  }
  return {low, high};
}

/// Online softmax of a thread's four rows; the sixteen threads of a row hold the same values.
struct Softmax {
  float most[kOwn] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  float sum[kOwn] = {};

  /// Masked scores of row i become exponents relative to the running maximum. Returns what the
  /// sums so far are multiplied by.
  __device__ float absorb(int i, float (&score)[kOwn]) {
    const float tile_most =
        warp_reduce<kRowLanes>(fmaxf(fmaxf(score[0], score[1]), fmaxf(score[2], score[3])), Max{});
    const float new_most = fmaxf(most[i], tile_most);
    const bool hidden = new_most == -INFINITY;  // nothing seen so far: no maximum to go by
    const float correction = hidden ? 1.0f : expf(most[i] - new_most);
    float tile_sum = 0;
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      score[j] = hidden ? 0.0f : expf(score[j] - new_most);
      tile_sum += score[j];
    }
    sum[i] = sum[i] * correction + warp_reduce<kRowLanes>(tile_sum, Sum{});
    most[i] = new_most;
    return correction;
  }
};

template <int D>
__global__ void __launch_bounds__(kTileThreads, 2)
    forward(const __grid_constant__ BlockView block, TokenRows out, RowNumbers lse) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<ForwardShared<D>*>(memory);
  // The last queries first: under a causal mask they have the most to do.
  const int begin = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kTile;
  const int h = blockIdx.y, b = blockIdx.z, g = h / block.group;
  if (threadIdx.x < kTile) {
    shared.interval[threadIdx.x] = block.interval(b, begin + static_cast<int>(threadIdx.x));
  }
  shared.q.load(block.q, b, h, begin, block.queries, block.dim);
  __syncthreads();
  const int2 keys = hull(shared.interval);
  RowSum<D> result;
  Softmax softmax;
  for (int key = keys.x; key < keys.y; key += kTile) {
    const int key_end = min(key + kTile, keys.y);
    const bool seen = threadIdx.x < kTile && sees(shared.interval[threadIdx.x], key, key_end);
    if (!__syncthreads_or(seen)) continue;  // and nobody reads the last tiles any more
    shared.k.load(block.k, b, g, key, key_end, block.dim);
    shared.v.load(block.v, b, g, key, key_end, block.dim);
    __syncthreads();
    float score[kOwn][kOwn];
    product_abt(shared.q, shared.k, score);
    __syncthreads();  // k is read, p takes its place
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int2 visible = shared.interval[own_row(i)];
#pragma unroll
      for (int j = 0; j < kOwn; ++j) {
        const int column = key + own_column(j);
        const bool hidden = column < visible.x || column >= visible.y;
        score[i][j] = hidden ? -INFINITY : score[i][j] * block.scale;
      }
      result.scale(i, softmax.absorb(i, score[i]));
#pragma unroll
      for (int j = 0; j < kOwn; ++j) shared.p.at[own_row(i)][own_column(j)] = score[i][j];
    }
    __syncwarp();  // a row of p is written and read by one half of a warp
    result.add_product(shared.p, shared.v);
  }
  // Merge into the running normalised (out, lse).
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int t = begin + own_row(i);
    const bool inside = t < block.queries && softmax.sum[i] > 0;
    float* total_lse = &lse.at(b, h, t);
    const float before = inside ? *total_lse : 0;
    __syncwarp();
    if (!inside) continue;
    const float block_lse = softmax.most[i] + logf(softmax.sum[i]);
    const float gap = block_lse - before;  // +inf when this is the first block seen
    const float share = 1 / (1 + expf(-gap)), weight = share / softmax.sum[i];
    result.merge_row(i, out.f32(out.at(b, t, h)), block.dim, [&](float total, float value) {
      return total * (1 - share) + value * weight;
    });
    if (threadIdx.x % kRowLanes == 0) {
      *total_lse = gap > 0 ? block_lse + log1pf(expf(-gap)) : before + log1pf(expf(gap));
    }
  }
}

constexpr int kMergeRows = 64;  // of a block

/// (out, lse) and (part, part_lse) over keys that have none in common. In the order of memory: the
/// rows of a block lie side by side in out and part, whatever the order of lse. W elements an
/// access.
template <class T, int W>
__global__ void __launch_bounds__(kTileThreads)
    merge_rows(TokenRows out, RowNumbers lse, TokenRows part, RowNumbers part_lse, MemoryOrder s) {
  __shared__ int64_t out_at[kMergeRows], part_at[kMergeRows];
  __shared__ float part_share[kMergeRows];
  const unsigned first = blockIdx.x * kMergeRows;
  const unsigned rows = min(s.rows - first, static_cast<unsigned>(kMergeRows));
  if (threadIdx.x < rows) {
    const auto [b, h, t] = s.at(first + threadIdx.x);
    const float block_lse = part_lse.at(b, h, t), before = lse.at(b, h, t);
    const bool blind = block_lse == -INFINITY;
    const float gap = block_lse - before;  // +inf when this is the first block seen
    out_at[threadIdx.x] = out.at(b, t, h);
    part_at[threadIdx.x] = part.at(b, t, h);
    part_share[threadIdx.x] = blind ? 0 : 1 / (1 + expf(-gap));
    if (!blind) {
      lse.at(b, h, t) = gap > 0 ? block_lse + log1pf(expf(-gap)) : before + log1pf(expf(gap));
    }
  }
  __syncthreads();
  const unsigned width = s.dim / W;
  for (unsigned i = threadIdx.x; i < rows * width; i += kTileThreads) {
    const unsigned row = i / width, column = i % width * W;
    const float share = part_share[row];
    if (share == 0) continue;
    float x[W], y[W] = {};
    load<W>(reinterpret_cast<const T*>(part.data) + part_at[row] + column, x);
    float* to = out.f32(out_at[row]) + column;
    if (share < 1) load<W>(to, y);
#pragma unroll
    for (int j = 0; j < W; ++j) y[j] = y[j] * (1 - share) + x[j] * share;
    store<W>(to, y);
  }
}

constexpr int kDeltaLanes = 8;  // threads of a row

template <class T, class G, int W>
__global__ void __launch_bounds__(kTileThreads)
    delta_rows(RowNumbers delta, TokenRows out, TokenRows dout, MemoryOrder s) {
  const unsigned row = (blockIdx.x * kTileThreads + threadIdx.x) / kDeltaLanes;
  const bool inside = row < s.rows;  // the others of the warp may be
  const auto [b, h, t] = s.at(inside ? row : 0);
  const T* x = reinterpret_cast<const T*>(out.data) + out.at(b, t, h);
  const G* dx = reinterpret_cast<const G*>(dout.data) + dout.at(b, t, h);
  const unsigned lane = threadIdx.x % kDeltaLanes;
  float sum = 0;
  for (unsigned d = lane * W; inside && d < s.dim; d += kDeltaLanes * W) {
    float a[W], c[W];
    load<W>(x + d, a);
    load<W>(dx + d, c);
#pragma unroll
    for (int j = 0; j < W; ++j) sum += a[j] * c[j];
  }
  sum = warp_reduce<kDeltaLanes>(sum, Sum{});
  if (inside && lane == 0) delta.at(b, h, t) = sum;
}

}  // namespace

void attention_forward_on_tiles(const AttentionForwardArgs& args, Stream& stream) {
  const AttentionBlock& block = args.block;
  const dim3 grid(grid_of(ceil_div(block.q.dim(1), kTile)), grid_of(block.q.dim(2)),
                  grid_of(block.q.dim(0)));
  with_tile_width(block.q.dim(3), [&](auto width) {
    constexpr int D = decltype(width)::value;
    launch_tiles(forward<D>, grid, sizeof(ForwardShared<D>), stream, view_of(block),
                 TokenRows::of(args.out), RowNumbers::of(args.lse));
  });
}

void attention_merge(const AttentionMergeArgs& args, Stream& stream) {
  const MemoryOrder s = MemoryOrder::of(args.out);
  if (s.rows == 0) return;
  elements<float>(args.out);  // the rows are f32; a part may be bf16
  visit_element(args.part_out.dtype, [&](auto zero) {
    with_access(s.dim, {&args.out, &args.part_out}, [&](auto width) {
      merge_rows<decltype(zero), width>
          <<<grid_of(ceil_div(s.rows, kMergeRows)), kTileThreads, 0, native(stream)>>>(
              TokenRows::of(args.out), RowNumbers::of(args.lse), TokenRows::of(args.part_out),
              RowNumbers::of(args.part_lse), s);
    });
  });
  WEFT_CALL(cudaGetLastError());
}

void attention_delta(const AttentionDeltaArgs& args, Stream& stream) {
  const MemoryOrder s = MemoryOrder::of(args.dout);
  if (s.rows == 0) return;
  visit_element(args.out.dtype, [&](auto zero) {
    visit_element(args.dout.dtype, [&](auto gradient_zero) {
      with_access(s.dim, {&args.out, &args.dout}, [&](auto width) {
        delta_rows<decltype(zero), decltype(gradient_zero), width>
            <<<grid_of(ceil_div(s.rows, kTileThreads / kDeltaLanes)), kTileThreads, 0,
               native(stream)>>>(RowNumbers::of(args.delta), TokenRows::of(args.out),
                                 TokenRows::of(args.dout), s);
      });
    });
  });
  WEFT_CALL(cudaGetLastError());
}

}  // namespace weft::cuda
