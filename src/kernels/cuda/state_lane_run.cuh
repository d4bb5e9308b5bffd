// One decay a token and row of the state, in bf16: the decays of a chunk between its edges and its
// tokens, as products of those of the tokens. They are made in groups of four tokens, in one order
// however many threads a kernel has: kernels that carry the same state give it the same bits.
#pragma once

#include "src/kernels/cuda/state_segments.cuh"

namespace weft::cuda::state {

/// What a thread decays of the panels: two neighbouring columns of some tokens of the chunk.
template <int K, int Threads>
class LaneRun {
 public:
  static constexpr int kGroup = 4, kGroups = kTile / kGroup;  // of tokens
  using Products = float[kGroups][K];                         // of the decays of a group

  /// Reads the logs of a chunk's decays, for exponentiate(): all loads are on their way before any
  /// is waited for, and none is waited for here.
  __device__ void fetch(const Shard& s, const Segmented::At& at, int n) {
    const int begin = (at.first + n) * kTile, count = min(kTile, s.tokens - begin);
    const float* log = s.log_decay + at.b * s.decay_batch + at.h * s.decay_head;
    const int x = min(column(), s.lanes - 1), y = min(column() + 1, s.lanes - 1);
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      const int64_t row = (begin + min(token(i), count - 1)) * s.decay_token;
      decay_[i] = {log[row + x], log[row + y]};
    }
    count_ = count - token(0);
    position_ = s.position_of(at.b, begin + min(token(lane_token()), count - 1));
  }

  /// Behind the chunk's end nothing decays; whoever starts a document resets all. The fast
  /// exponentials of 64 tokens multiplied are off by 1e-5, a hundredth of what bf16 rounds.
  __device__ void exponentiate() {
    const unsigned starts = __ballot_sync(0xFFFFFFFFu, position_ == 0);
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      const float2 log = decay_[i];
      decay_[i] = i >= count_       ? float2{1, 1}
                  : starts >> i & 1 ? float2{0, 0}
                                    : float2{__expf(log.x), __expf(log.y)};
    }
  }

  /// Makes of the decays those from behind each token to the end of its group, or (not `Leaving`)
  /// from before the group to the token; those over whole groups go to `products`, the same either
  /// way.
  template <bool Leaving>
  __device__ void run(Products& products) {
    const auto times = [](float2 a, float2 b) { return float2{a.x * b.x, a.y * b.y}; };
#pragma unroll
    for (int own = 0; own < kOwn; ++own) {
      float2* of = decay_ + own * kGroup;
      const float2 first = times(of[0], of[1]), second = times(of[2], of[3]);
      const float2 all = times(first, second);
      store<2>(&products[first_group() + own][column()], {all.x, all.y});
      if (Leaving) {
        of[0] = times(of[1], second), of[1] = second, of[2] = of[3], of[3] = {1, 1};
      } else {
        of[1] = first, of[2] = times(first, of[2]), of[3] = all;
      }
    }
  }

  /// Decays the thread's numbers of a panel, times alpha; behind a barrier behind run().
  template <bool Leaving>
  __device__ void apply(float alpha, const Products& products, Panel<K>& x) const {
    apply<Leaving>(alpha, products, x, [](int, int, float, float) {});
  }
  /// The same; keep(token, column, its factor, that of the next column).
  template <bool Leaving, class F>
  __device__ void apply(float alpha, const Products& products, Panel<K>& x, F&& keep) const {
    float2 outside{alpha, alpha};  // from the chunk's edge on
    const auto pass = [&](int group) {
      float over[2];
      cuda::load<2>(&products[group][column()], over);
      outside = {outside.x * over[0], outside.y * over[1]};
    };
    for (int i = 0; i < (Leaving ? kGroups - kOwn - first_group() : first_group()); ++i) {
      pass(Leaving ? kGroups - 1 - i : i);
    }
#pragma unroll
    for (int n = 0; n < kOwn; ++n) {
      const int own = Leaving ? kOwn - 1 - n : n;
#pragma unroll
      for (int i = own * kGroup; i < (own + 1) * kGroup; ++i) {
        auto* at = reinterpret_cast<uint32_t*>(&x.at(token(i), column()));
        const float first = decay_[i].x * outside.x, second = decay_[i].y * outside.y;
        *at = scaled(*at, first, second);
        keep(token(i), column(), first, second);
      }
      if (n + 1 < kOwn) pass(first_group() + own);
    }
  }

  /// Over the whole chunk.
  static __device__ float through(const Products& products, int lane) {
    float all = 1;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) all *= products[group][lane];
    return all;
  }

 private:
  static constexpr int kTokens = kTile / (Threads / (K / 2)), kOwn = kTokens / kGroup;
  static_assert(K / 2 % kWarp == 0, "a warp has the same tokens");
  static_assert(kTokens % kGroup == 0 && kTokens <= kWarp, "a thread has whole groups");
  float2 decay_[kTokens];
  int64_t position_;  // of the token that the thread looks at for its warp
  int count_;         // tokens of the thread that there are; none where it is 0 or less

  static __device__ int lane_token() {
    return min(static_cast<int>(threadIdx.x) % kWarp, kTokens - 1);
  }

  static __device__ int column() {
    return static_cast<int>(threadIdx.x) % (K / 2) * 2;
  }
  static __device__ int token(int i) {
    return static_cast<int>(threadIdx.x) / (K / 2) * kTokens + i;
  }
  static __device__ int first_group() {
    return token(0) / kGroup;
  }
};
}  // namespace weft::cuda::state
