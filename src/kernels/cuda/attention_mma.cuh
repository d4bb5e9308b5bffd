// Tiles of the bf16 attention kernels. A block of 256 threads owns 128 rows, 16 a warp, and walks
// the other side in steps of 64, the next step on its way while one is computed with.
#pragma once

#include "src/kernels/cuda/attention_warp.cuh"
#include "src/kernels/cuda/mma.cuh"

namespace weft::cuda {

inline constexpr int kOwned = 128;  // rows of a block
inline constexpr int kStep = 64;    // rows that are walked at a time
inline constexpr int kChunk = 8;    // elements of 16 bytes

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

/// sum += (16 rows of `rows` from `row` on) (N rows of `others` from `other` on)^T.
template <int N, int D, int R, int O>
__device__ void add_scores(RowSums<N>& sum, const MmaTile<D, R>& rows, int row,
                           const MmaTile<D, O>& others, int other) {
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    uint32_t a[4];
    rows.left(a, row, k);
#pragma unroll
    for (int n = 0; n < N / 16; ++n) {
      uint32_t b[4];
      others.right_transposed(b, other + 16 * n, k);
      multiply_add(sum.at[2 * n], a, b[0], b[1]);
      multiply_add(sum.at[2 * n + 1], a, b[2], b[3]);
    }
  }
}

/// sum += weights (K rows of `rows` from `row` on), the weights rounded to bf16.
template <int D, int K, int R>
__device__ void add_product(RowSums<D>& sum, const RowSums<K>& weights, const MmaTile<D, R>& rows,
                            int row) {
  const LeftRows<K> left(weights);
#pragma unroll
  for (int k = 0; k < K / 16; ++k) {
#pragma unroll
    for (int chunk = 0; chunk < D / 8; chunk += 2) {
      uint32_t b[4];
      rows.right(b, row + 16 * k, chunk);
      multiply_add(sum.at[chunk], left.at[k], b[0], b[1]);
      multiply_add(sum.at[chunk + 1], left.at[k], b[2], b[3]);
    }
  }
}

}  // namespace weft::cuda
