// Pairs of tokens of one chunk in the vector kind, whose decays stand inside the sum over the
// state's rows. A block of 16 tokens against those before it is a product of q o decay(from the
// block's start) and k o decay(to it), neither above 1; inside a block every pair takes its own
// decays.
#pragma once

#include "src/kernels/cuda/state_shard.cuh"

namespace weft::cuda::state {

/// For 64 rows of the state.
template <class T>
struct LaneTiles {
  LaneDecays decays;
  Tile<T> q, k;
  Tile<T> q_start;  // row r from the start of its block
  /// Row j < 16 I to the start of block I = 1, 2, 3, for each I its own rows.
  Tile<T, 6 * kBlock> k_start;

  static __device__ int first_of(int block) { return kBlock / 2 * block * (block - 1); }

  /// From q, k and decays, between two barriers.
  __device__ void decay_to_starts() {
    for_quads([&](int r, int column) {
      const int start = r / kBlock * kBlock;
#pragma unroll
      for (int d = column; d < column + 4; ++d) {
        q_start.at(r, d) = from_float<T>(
            to_float(q.at(r, d)) * decay_between(decays.place[r + 1][d], decays.place[start][d]));
      }
    });
    for_quads<6 * kBlock>([&](int row, int column) {
      const int block = row < first_of(2) ? 1 : row < first_of(3) ? 2 : 3;
      const int j = row - first_of(block);
#pragma unroll
      for (int d = column; d < column + 4; ++d) {
        k_start.at(row, d) = from_float<T>(to_float(k.at(j, d)) * to_start(block, j, d));
      }
    });
  }

  /// The decay from after token j to the start of a later block.
  __device__ float to_start(int block, int j, int d) const {
    return decay_between(decays.place[block * kBlock][d], decays.place[j + 1][d]);
  }

  /// sum[r, j] += of these rows of the state, for j in blocks before that of r.
  __device__ void add_scores_before(TileSum<T>& sum) const {
    const int block = TileSum<T>::block();
    sum.template add_blocks<false, true>(q_start.data, q_start.kStep, k_start.kStep, kTile,
                                         [&](int columns) -> const T* {
                                           if (columns >= block) return nullptr;
                                           return k_start.row(first_of(block) + columns * kBlock);
                                         });
  }
};

/// The scores of the pairs inside blocks. Thread (y, x) of 16 x 16 has those of tokens 4 y + i with
/// token x of their block.
struct InsideScores {
  float at[4] = {};

  static __device__ int row(int i) { return static_cast<int>(threadIdx.x) / kBlock * 4 + i; }
  static __device__ int column() {
    return row(0) / kBlock * kBlock + static_cast<int>(threadIdx.x) % kBlock;
  }

  template <class T>
  __device__ void add(const LaneTiles<T>& tiles) {
    const int j = column();
    for (int d = 0; d < kTile; ++d) {
      const double to = tiles.decays.place[j + 1][d];
      const float k = to_float(tiles.k.at(j, d));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int r = row(i);
        if (j > r) continue;
        const float q = to_float(tiles.q.at(r, d));
        at[i] = fmaf(q * decay_between(tiles.decays.place[r + 1][d], to), k, at[i]);
      }
    }
  }
};

/// All scores times scale, 0 above the diagonal.
template <class T>
__device__ void store_scores(TileSum<T>& before, const InsideScores& inside, float scale,
                             Tile<T>& scores) {
  for_each(before, [&](int r, int j, float value) {
    if (r / kBlock == j / kBlock) return;
    scores.at(r, j) = from_float<T>(j < r ? scale * value : 0.0f);
  });
  const int j = inside.column();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int r = inside.row(i);
    scores.at(r, j) = from_float<T>(j <= r ? scale * inside.at[i] : 0.0f);
  }
}

}  // namespace weft::cuda::state
