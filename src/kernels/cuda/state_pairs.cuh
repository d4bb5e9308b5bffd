// Pairs of tokens of one chunk in the vector kind, whose decays stand inside the sum over the
// state's rows. A block of 16 tokens against those before it is a product of q o decay(from the
// block's start) and k o decay(to it), neither above 1; inside a block the decay of a pair is the
// product of those of the tokens between, so that no pair takes an exponential.
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

  /// In the place of q_start and k_start, once nobody reads them.
  __device__ Tile<float>& spare() {
    static_assert(sizeof q_start + sizeof k_start >= sizeof(Tile<float>));
    return *reinterpret_cast<Tile<float>*>(&q_start);
  }

  static __device__ int first_of(int block) { return kBlock / 2 * block * (block - 1); }

  /// From q, k and decays, between two barriers; `steps` gets the decays of the tokens. A thread
  /// has a row of the state, so that those of a warp lie in different banks.
  __device__ void decay_to_starts(Tile<float>& steps) {
    const int d = threadIdx.x % kTile, quarter = static_cast<int>(threadIdx.x) / kTile;
    const double start = decays.place[quarter * kBlock][d];
    double before = start;
#pragma unroll 4
    for (int i = 0; i < kBlock; ++i) {
      const int r = quarter * kBlock + i;
      const double after = decays.place[r + 1][d];
      steps.at(r, d) = decay_between<T>(after, before);
      q_start.at(r, d) = from_float<T>(to_float(q.at(r, d)) * decay_between<T>(after, start));
      before = after;
    }
    constexpr int kEach = 6 * kBlock / kBlocks;
#pragma unroll 4
    for (int row = quarter * kEach; row < (quarter + 1) * kEach; ++row) {
      const int block = row < first_of(2) ? 1 : row < first_of(3) ? 2 : 3;
      const int j = row - first_of(block);
      k_start.at(row, d) = from_float<T>(to_float(k.at(j, d)) * to_start(block, j, d));
    }
  }

  /// The decay from after token j to the start of a later block.
  __device__ float to_start(int block, int j, int d) const {
    return decay_between<T>(decays.place[block * kBlock][d], decays.place[j + 1][d]);
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

/// The scores of the pairs inside blocks, as parts: a thread has those of token j with all of its
/// block, over a quarter of the state's rows.
struct InsideScores {
  static constexpr int kParts = 4, kLanes = kTile / kParts;
  float at[kBlock] = {};

  static __device__ int part() {
    return static_cast<int>(threadIdx.x) / kWarp % 2 * 2 + static_cast<int>(threadIdx.x) / 16 % 2;
  }
  static __device__ int block() { return static_cast<int>(threadIdx.x) / (2 * kWarp); }
  static __device__ int column() { return block() * kBlock + static_cast<int>(threadIdx.x) % 16; }

  /// Over 64 rows of the state.
  template <class T>
  __device__ void add(const LaneTiles<T>& tiles, const Tile<float>& steps) {
    const int j = static_cast<int>(threadIdx.x) % 16, begin = block() * kBlock;
    float sum[kBlock] = {};
#pragma unroll 1
    for (int d = part() * kLanes; d < (part() + 1) * kLanes; d += 4) {
      float decayed[4];  // the key, decayed up to token r
      load<4>(&tiles.k.at(begin + j, d), decayed);
#pragma unroll
      for (int r = 0; r < kBlock; ++r) {
        float q[4], step[4];
        load<4>(&tiles.q.at(begin + r, d), q);
        load<4>(&steps.at(begin + r, d), step);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (r > j) decayed[i] *= step[i];
          sum[r] = fmaf(q[i], decayed[i], sum[r]);  // above the diagonal it is not used
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kBlock; ++r) at[r] += sum[r];
  }

  /// The sums of the parts, for `part` 0. All threads of the block call it, between barriers; in
  /// between `shared` [16][64] is in use.
  __device__ void join_parts(float* shared) {
#pragma unroll
    for (float& x : at) x += __shfl_xor_sync(0xFFFFFFFFu, x, 16);
    if (part() == 2) {
#pragma unroll
      for (int r = 0; r < kBlock; ++r) shared[r * kTile + column()] = at[r];
    }
    __syncthreads();
    if (part() != 0) return;
#pragma unroll
    for (int r = 0; r < kBlock; ++r) at[r] += shared[r * kTile + column()];
  }
};

/// All scores times scale, 0 above the diagonal. `inside` is joined.
template <class T>
__device__ void store_scores(TileSum<T>& before, const InsideScores& inside, float scale,
                             Tile<T>& scores) {
  for_each(before, [&](int r, int j, float value) {
    if (r / kBlock == j / kBlock) return;
    scores.at(r, j) = from_float<T>(j < r ? scale * value : 0.0f);
  });
  if (inside.part() != 0) return;
  const int j = inside.column(), begin = inside.block() * kBlock;
#pragma unroll
  for (int i = 0; i < kBlock; ++i) {
    const int r = begin + i;
    scores.at(r, j) = from_float<T>(j <= r ? scale * inside.at[i] : 0.0f);
  }
}

}  // namespace weft::cuda::state
