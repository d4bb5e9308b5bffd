// Tiles of the bf16 attention kernels. A block of 256 threads owns 128 rows, 16 a warp, and walks
// the other side in steps of 64, the next step on its way while one is computed with. In a product
// of 16 rows lane l has rows l / 4 and l / 4 + 8, of every 8 columns the two from 2 (l % 4) on.
#pragma once

#include "src/kernels/cuda/attention_rows.cuh"
#include "src/kernels/cuda/mma.cuh"

namespace weft::cuda {

inline constexpr int kOwned = 128;  // rows of a block
inline constexpr int kWarpRows = 16;
inline constexpr int kStep = 64;  // rows that are walked at a time
inline constexpr int kChunk = 8;  // elements of 16 bytes
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

/// Rows of bf16, heads up to D wide; what is past the width or the last row is zero. Chunks of a
/// row change places with its number, so that eight rows of one column of chunks lie in different
/// banks.
template <int D, int Rows>
struct MmaTile {
  bf16 at[Rows * D];

  static __device__ int place(int row, int chunk) {
    return row * D + ((chunk ^ (row & 7)) * kChunk);
  }

  /// Starts copying rows [begin, begin + Rows) of one (batch, head), as far as they are below
  /// `end`.
  __device__ void fetch(const TokenRows& from, int64_t b, int64_t h, int begin, int end, int dim) {
    constexpr int kChunks = D / kChunk;
    const bf16* data = reinterpret_cast<const bf16*>(from.data);
    for (int i = threadIdx.x; i < Rows * kChunks; i += kTileThreads) {
      const int row = i / kChunks, chunk = i % kChunks;
      const bool there = begin + row < end && chunk * kChunk < dim;
      const int64_t offset = there ? from.at(b, begin + row, h) + chunk * kChunk : 0;
      copy_or_zero(&at[place(row, chunk)], data + offset, there);
    }
  }

  /// Left operand: rows [row, row + 16), columns [16 k, 16 k + 16).
  __device__ void left(uint32_t (&a)[4], int row, int k) const {
    const int l = lane();
    load_matrices<false>(a, &at[place(row + (l & 15), 2 * k + l / 16)]);
  }
  /// Right operands of the transposed tile, [16 columns k of it, 2 x 8 of its rows from `row` on]:
  /// b[0], b[1] of the first eight, b[2], b[3] of the others.
  __device__ void right_transposed(uint32_t (&b)[4], int row, int k) const {
    const int l = lane();
    load_matrices<false>(b, &at[place(row + l / 16 * 8 + (l & 7), 2 * k + (l / 8 & 1))]);
  }
  /// Right operands of the tile, [16 rows from `row` on, chunks `chunk` and the next].
  __device__ void right(uint32_t (&b)[4], int row, int chunk) const {
    const int l = lane();
    load_matrices<true>(b, &at[place(row + (l & 15), chunk + l / 16)]);
  }
};

/// A product of 16 rows and N columns: its sums in f32.
template <int N>
struct RowSums {
  float at[N / 8][4] = {};

  /// += (16 rows of `rows` from `row` on) (N rows of `others` from `other` on)^T.
  template <int D, int R, int O>
  __device__ void add_transposed(const MmaTile<D, R>& rows, int row, const MmaTile<D, O>& others,
                                 int other) {
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      uint32_t a[4];
      rows.left(a, row, k);
#pragma unroll
      for (int n = 0; n < N / 16; ++n) {
        uint32_t b[4];
        others.right_transposed(b, other + 16 * n, k);
        multiply_add(at[2 * n], a, b[0], b[1]);
        multiply_add(at[2 * n + 1], a, b[2], b[3]);
      }
    }
  }

  /// += weights (K rows of `rows` from `row` on), the weights rounded to bf16.
  template <int K, int R>
  __device__ void add_product(const RowSums<K>& weights, const MmaTile<N, R>& rows, int row) {
#pragma unroll
    for (int k = 0; k < K / 16; ++k) {
      const float(&first)[4] = weights.at[2 * k];
      const float(&second)[4] = weights.at[2 * k + 1];
      const uint32_t a[4] = {pair(first[0], first[1]), pair(first[2], first[3]),
                             pair(second[0], second[1]), pair(second[2], second[3])};
#pragma unroll
      for (int chunk = 0; chunk < N / 8; chunk += 2) {
        uint32_t b[4];
        rows.right(b, row + 16 * k, chunk);
        multiply_add(at[chunk], a, b[0], b[1]);
        multiply_add(at[chunk + 1], a, b[2], b[3]);
      }
    }
  }

  /// target[column] = f(target[column], sum) over the lane's columns below `dim`, of its first row
  /// or, with `half` 1, its second.
  template <class F>
  __device__ void merge_row(int half, float* target, int dim, F&& f) const {
#pragma unroll
    for (int n = 0; n < N / 8; ++n) {
      const int column = 8 * n + own_column();
      if (column >= dim) continue;  // a multiple of 8
      float2* to = reinterpret_cast<float2*>(target + column);
      const float2 before = *to;
      *to = make_float2(f(before.x, at[n][2 * half]), f(before.y, at[n][2 * half + 1]));
    }
  }

 private:
  static __device__ uint32_t pair(float low, float high) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&both);
  }
};

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

/// The keys that the block's owned queries see: [x, y), the warps' results put together in `shared`
/// (one place a warp). All threads call it.
__device__ inline int2 seen_by_block(const Seen& warp, int2* shared) {
  if (lane() == 0) shared[threadIdx.x / kWarp] = {warp.low, warp.high};
  __syncthreads();
  int2 keys{INT32_MAX, 0};
  for (int w = 0; w < kTileThreads / kWarp; ++w) {
    keys.x = min(keys.x, shared[w].x);
    keys.y = max(keys.y, shared[w].y);
  }
  return keys;
}

}  // namespace weft::cuda
