// What a warp of the bf16 attention kernels has: 16 rows. In a product of them lane l has rows l /
// 4 and l / 4 + 8, of every 8 columns the two from 2 (l % 4) on.
#pragma once

#include "src/kernels/cuda/attention_rows.cuh"

namespace weft::cuda {

inline constexpr int kWarpRows = 16;
inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

__device__ inline int lane() {
  return static_cast<int>(threadIdx.x % kWarp);
}
__device__ inline int warp_row() {  // the first of the warp's rows
  return static_cast<int>(threadIdx.x / kWarp) * kWarpRows;
}
__device__ inline int own_row() {  // of the lane's two rows, the first
  return warp_row() + lane() / 4;
}
__device__ inline int own_column() {  // of the lane's two columns of 8, the first
  return lane() % 4 * 2;
}

struct Undefined {};

/// A product of 16 rows and N columns: its sums in f32, zero at first, or undefined.
template <int N>
struct RowSums {
  float at[N / 8][4];

  __device__ explicit RowSums(Undefined) {}
  __device__ RowSums() {
#pragma unroll
    for (auto& sums : at) {
#pragma unroll
      for (float& sum : sums) sum = 0;
    }
  }
};

/// Sums of 16 rows and N columns as a left operand, rounded to bf16.
template <int N>
struct LeftRows {
  uint32_t at[N / 16][4];

  __device__ explicit LeftRows(const RowSums<N>& from) {
#pragma unroll
    for (int k = 0; k < N / 16; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* sums = &from.at[2 * k + i / 2][i % 2 * 2];
        const __nv_bfloat162 pair = __floats2bfloat162_rn(sums[0], sums[1]);
        at[k][i] = *reinterpret_cast<const uint32_t*>(&pair);
      }
    }
  }
};

/// A warp's 16 rows of sums on their way to f32 rows [B, T, heads, D]: a lane has few columns of a
/// row, and memory is fast where a warp reads and writes whole rows.
template <int D>
struct RowStage {
  float at[kWarpRows][D + 8];  // in column D what the row there is multiplied by; < 0: it stays

  /// Row `half` of every lane: `factor` times its sums.
  __device__ void put(const RowSums<D>& sums, int half, float factor, float keep) {
    float* row = at[own_row() % kWarpRows + 8 * half];
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      *reinterpret_cast<float2*>(&row[8 * n + own_column()]) =
          make_float2(sums.at[n][2 * half] * factor, sums.at[n][2 * half + 1] * factor);
    }
    if (own_column() == 0) row[D] = keep;
  }

  /// Rows t, t + 1, ... of the target = keep times themselves and what was put. All lanes call it.
  __device__ void merge(const TokenRows& target, int b, int t, int h, int dim) {
    __syncwarp();
    if (4 * lane() % D < dim) merge_columns(target, b, t, h);
    __syncwarp();  // before something else is put
  }

 private:
  __device__ void merge_columns(const TokenRows& target, int b, int t, int h) {
    constexpr int kRows = 4 * kWarp / D, kBatch = 8;  // rows of an access, accesses at a time
    const int column = 4 * lane() % D, first = 4 * lane() / D;
#pragma unroll
    for (int from = first; from < kWarpRows; from += kRows * kBatch) {
      float4 before[kBatch] = {};
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int row = from + i * kRows;
        if (at[row][D] <= 0) continue;
        before[i] = *reinterpret_cast<const float4*>(target.f32(target.at(b, t + row, h)) + column);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int row = from + i * kRows;
        const float keep = at[row][D];
        if (keep < 0) continue;
        const float4 sum = *reinterpret_cast<const float4*>(&at[row][column]);
        *reinterpret_cast<float4*>(target.f32(target.at(b, t + row, h)) + column) =
            make_float4(before[i].x * keep + sum.x, before[i].y * keep + sum.y,
                        before[i].z * keep + sum.z, before[i].w * keep + sum.w);
      }
    }
  }
};

/// The stage of this warp, of `Warps`, in the memory of tiles that nobody reads any more.
template <int D, int Warps, class Tiles>
__device__ RowStage<D>& stage_in(Tiles& tiles) {
  static_assert(Warps * sizeof(RowStage<D>) <= sizeof(Tiles));
  return reinterpret_cast<RowStage<D>*>(&tiles)[threadIdx.x / kWarp];
}

/// 2^x to 2^-22, what is below 2^-126 as 0.
__device__ inline float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Over the four lanes of a row.
template <class Op>
__device__ float quad_reduce(float value, Op op) {
  value = op(value, __shfl_xor_sync(0xFFFFFFFFu, value, 1));
  return op(value, __shfl_xor_sync(0xFFFFFFFFu, value, 2));
}

/// Online softmax of the lane's two rows, in powers of two; the four lanes of a row have the same
/// maximum and a part of the sum each.
struct RowSoftmax {
  float most[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};

  /// Scores of row `half`, to be multiplied by `scale` into units of log2, become exponentials
  /// relative to the running maximum. Returns what the sums so far are multiplied by.
  template <int N>
  __device__ float absorb(int half, RowSums<N>& score, float scale) {
    float tile_most = -INFINITY;
#pragma unroll
    for (int n = 0; n < N / 8; ++n) {
      tile_most = fmaxf(tile_most, fmaxf(score.at[n][2 * half], score.at[n][2 * half + 1]));
    }
    const float new_most = fmaxf(most[half], quad_reduce(tile_most, Max{}) * scale);
    const bool hidden = new_most == -INFINITY;  // nothing seen so far: no maximum to go by
    const float base = hidden ? 0.0f : new_most;
    float tile_sum = 0;
#pragma unroll
    for (int n = 0; n < N / 8; ++n) {
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

  /// A row of out is to become `keep` times itself and `factor` times the sums that go with this
  /// softmax; with a negative `keep` it stays.
  struct Shares {
    float factor, keep;
  };
  /// Merges the log-sum-exp of row `half`, query t, into lse. All lanes of the warp call it.
  __device__ Shares merge(int half, const BlockView& block, const RowNumbers& lse, int b, int h,
                          int t) const {
    const float total = quad_reduce(sum[half], Sum{});
    const bool inside = t < block.queries && total > 0;
    float* total_lse = &lse.at(b, h, inside ? t : 0);
    const float before = inside ? *total_lse : 0;
    __syncwarp();  // every lane has read it
    if (!inside) return {0, -1};
    const float block_lse = most[half] * kLn2 + logf(total);
    const float gap = block_lse - before;  // +inf when this is the first block seen
    if (lane() % 4 == 0) {
      *total_lse = gap > 0 ? block_lse + log1pf(expf(-gap)) : before + log1pf(expf(gap));
    }
    const float share = 1 / (1 + expf(-gap));
    return {share / total, 1 - share};
  }
};

/// The sums that go with a softmax become part of out and lse, in the queries from `begin` on that
/// the block owns. All lanes of the warp call it.
template <int D>
__device__ void merge_output(RowStage<D>& stage, const RowSums<D>& sums, const RowSoftmax& softmax,
                             const BlockView& block, const TokenRows& out, const RowNumbers& lse,
                             int b, int h, int begin) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const auto [factor, keep] = softmax.merge(half, block, lse, b, h, begin + own_row() + 8 * half);
    stage.put(sums, half, factor, keep);
  }
  stage.merge(out, b, begin + warp_row(), h, block.dim);
}

/// What going back needs of a query: P = 2^(score - lse).
struct QueryRow {
  int2 keys;  // that it sees; none where it saw nothing at all
  float lse;  // in units of log2
  float delta;

  static __device__ QueryRow of(const BlockView& block, const Gradients& a, int64_t b, int64_t h,
                                int t) {
    if (t >= block.queries) return {{0, 0}, 0, 0};
    const float lse = a.lse.at(b, h, t);
    if (lse == -INFINITY) return {{0, 0}, 0, 0};
    return {block.interval(b, t), lse * kLog2E, a.delta.at(b, h, t)};
  }
  __device__ bool sees(int key) const { return key >= keys.x && key < keys.y; }
};

/// What several queries see together: every key that some query sees lies in [low, high), and every
/// query sees all of [all_low, all_high).
struct Seen {
  int low = INT32_MAX, high = 0, all_low = 0, all_high = INT32_MAX;

  __device__ void add(int2 keys) {
    if (keys.x < keys.y) {
      low = min(low, keys.x);
      high = max(high, keys.y);
    }
    all_low = max(all_low, keys.x);
    all_high = min(all_high, keys.y);
  }
  /// Every lane gets what all lanes of the warp have.
  __device__ void share() {
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      low = min(low, __shfl_xor_sync(0xFFFFFFFFu, low, offset));
      high = max(high, __shfl_xor_sync(0xFFFFFFFFu, high, offset));
      all_low = max(all_low, __shfl_xor_sync(0xFFFFFFFFu, all_low, offset));
      all_high = min(all_high, __shfl_xor_sync(0xFFFFFFFFu, all_high, offset));
    }
  }
  __device__ bool any(int begin, int end) const {
    return max(low, begin) < min(high, end);
  }
  __device__ bool all(int begin, int end) const {
    return all_low <= begin && end <= all_high;
  }
};

/// The hull of what `warps` of them see.
__device__ inline int2 seen_by_warps(const int2* each, int warps) {
  int2 keys{INT32_MAX, 0};
  for (int w = 0; w < warps; ++w) {
    keys.x = min(keys.x, each[w].x);
    keys.y = max(keys.y, each[w].y);
  }
  return keys;
}

/// The keys that the block's owned queries see: [x, y), the warps' results put together in `shared`
/// (one place a warp). All threads call it.
__device__ inline int2 seen_by_block(const Seen& warp, int2* shared) {
  if (lane() == 0) shared[threadIdx.x / kWarp] = {warp.low, warp.high};
  __syncthreads();
  return seen_by_warps(shared, static_cast<int>(blockDim.x) / kWarp);
}

}  // namespace weft::cuda
