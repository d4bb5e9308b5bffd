// One decay a token and row of the state, in bf16: the decays of a chunk between its edges and its
// tokens, as products of those of the tokens.
#pragma once

#include "src/kernels/cuda/state_segments.cuh"

namespace weft::cuda::state {

/// What a thread decays of the panels: two neighbouring columns of some tokens of the chunk.
template <int K, int Threads>
class LaneRun {
 public:
  static constexpr int kParts = Threads / (K / 2);
  using Products = float[kParts][K];

  /// Reads the logs of a chunk's decays, for exponentiate().
  __device__ void load(const Shard& s, const Segmented::At& at, int n) {
    const int begin = (at.first + n) * kTile, count = min(kTile, s.tokens - begin);
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      const int t = token(i);
      const float* log = s.log_decay + at.b * s.decay_batch + at.h * s.decay_head +
                         static_cast<int64_t>(begin + t) * s.decay_token;
      decay_[i] = {};
      if (t >= count) continue;
      if (column() < s.lanes) decay_[i].x = log[column()];
      if (column() + 1 < s.lanes) decay_[i].y = log[column() + 1];
      const int64_t position = at.b * s.position_batch + (begin + t) * s.position_token;
      if (s.positions[position] == 0) decay_[i] = {-INFINITY, -INFINITY};
    }
  }

  __device__ void exponentiate() {
#pragma unroll
    for (float2& decay : decay_) decay = {expf(decay.x), expf(decay.y)};
  }

  /// Makes of the decays those from behind each token to the end of the thread's tokens, or (not
  /// `Leaving`) from before them to the token; that over all of them goes to `products`.
  template <bool Leaving>
  __device__ void run(Products& products) {
    float2 all{1, 1};
#pragma unroll
    for (int j = 0; j < kTokens; ++j) {
      float2& of = decay_[Leaving ? kTokens - 1 - j : j];
      const float2 before = all;
      all = {all.x * of.x, all.y * of.y};
      of = Leaving ? before : all;
    }
    products[part()][column()] = all.x;
    products[part()][column() + 1] = all.y;
  }

  /// Decays the thread's numbers of a panel, times alpha; behind a barrier behind run().
  template <bool Leaving>
  __device__ void apply(float alpha, const Products& products, Panel<K>& x) const {
    apply<Leaving>(alpha, products, x, [](int, int, float, float) {});
  }
  /// The same; keep(token, column, its factor, that of the next column).
  template <bool Leaving, class F>
  __device__ void apply(float alpha, const Products& products, Panel<K>& x, F&& keep) const {
    float2 outside{alpha, alpha};
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      if (Leaving ? p <= part() : p >= part()) continue;
      outside.x *= products[p][column()];
      outside.y *= products[p][column() + 1];
    }
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      auto* at = reinterpret_cast<uint32_t*>(&x.at(token(i), column()));
      const float first = decay_[i].x * outside.x, second = decay_[i].y * outside.y;
      *at = scaled(*at, first, second);
      keep(token(i), column(), first, second);
    }
  }

  /// Over the whole chunk.
  static __device__ float through(const Products& products, int lane) {
    float all = 1;
#pragma unroll
    for (int p = 0; p < kParts; ++p) all *= products[p][lane];
    return all;
  }

 private:
  static constexpr int kTokens = kTile / kParts;
  float2 decay_[kTokens];

  static __device__ int column() {
    return static_cast<int>(threadIdx.x) % (K / 2) * 2;
  }
  static __device__ int part() {
    return static_cast<int>(threadIdx.x) / (K / 2);
  }
  static __device__ int token(int i) {
    return part() * kTokens + i;
  }
};
}  // namespace weft::cuda::state
