// A shard as the kernels of the state mixers see it, and its decays inside a chunk.
//
// Decays are differences of *places*: place 0 of a chunk is before it, place t + 1 after its token
// t. A place holds the sum of the logs since the last reset, less kReset for every reset of the
// chunk before it. Places with no reset in between differ by the log of the decay, others by so
// much that its exponential is an exact 0. Neither -inf nor anything below kLogOfZero enters a sum.
#pragma once

#include <cmath>

#include "src/kernels/cuda/state_tiles.cuh"

namespace weft::cuda::state {

inline constexpr double kLogOfZero = -745.2;  // e^x is 0 in f64 below
/// More than a chunk of logs adds up to, and a power of 2, so that it costs the sums no more than
/// 2^-27.
inline constexpr double kReset = 1 << 20;

/// The tokens of a call, by value.
struct Shard {
  const float* log_decay;  // null: none
  const float* beta;       // null: not delta
  const int64_t* positions;
  int64_t decay_batch, decay_token, decay_head;  // strides
  int64_t beta_batch, beta_token, beta_head;
  int64_t position_batch, position_token;
  int heads, tokens, chunks, key_dim, value_dim;
  int lanes;  // decays of a token and head

  static Shard of(const StateTokens& tokens);

  /// The log of the decay of token t, lane `lane`.
  __device__ float log(int b, int h, int t, int lane) const {
    if (log_decay == nullptr) return 0;
    return log_decay[b * decay_batch + t * decay_token + h * decay_head + lane];
  }
  /// The position of token t in its document; at 0 the state is reset.
  __device__ int64_t position_of(int b, int t) const {
    return positions[b * position_batch + t * position_token];
  }

  /// The place after a token, seen from before it.
  static __device__ double step(float log) { return log < kLogOfZero ? -kReset : log; }
  __device__ double step(int b, int h, int t, int lane) const {
    const float own = log(b, h, t, lane);  // neither load waits for the other
    return position_of(b, t) == 0 ? -kReset : step(own);
  }
};

/// Chunk `index` of head (b, h).
struct ChunkOf {
  int b, h, index, begin, count;

  /// The `block`-th of blocks that take chunks [first, first + chunks) of every head.
  static __device__ ChunkOf at(const Shard& s, int block, int first, int chunks) {
    const int head = block / chunks, index = first + block % chunks;
    const int begin = index * kTile;
    return {head / s.heads, head % s.heads, index, begin, min(kTile, s.tokens - begin)};
  }
  __device__ int64_t head(const Shard& s) const { return static_cast<int64_t>(b) * s.heads + h; }
};

/// Places of an earlier and a later stretch of tokens, each counted from 0, joined.
__device__ inline double join(double earlier, double later) {
  const bool resets = later <= -kReset;
  return resets ? later - kReset * floor(-earlier / kReset) : earlier + later;
}

/// As exact as numbers of T are. For bf16 the fast exponential, a quarter of the instructions: it
/// is off by 2 + 1.2 |log| units in the last place, less than 3e-7 of 1.
template <class T = float>
__device__ inline float decay_between(double later, double earlier) {
  const float log = static_cast<float>(later - earlier);
  return std::is_same_v<T, bf16> ? __expf(log) : expf(log);
}

/// One decay a token. The first warp loads; the block synchronises behind it.
struct TokenDecays {
  static constexpr bool kLanes = false;
  double place[kTile + 1];
  float from_start[kTile], to_end[kTile];

  __device__ void load(const Shard& s, const ChunkOf& chunk, int = 0) {
    if (threadIdx.x >= kWarp) return;
    if (threadIdx.x == 0) place[0] = 0;
    for_tokens(s, chunk, [&](int t, double after, double end) {
      place[t + 1] = after;
      from_start[t] = decay_between(after, 0);
      to_end[t] = decay_between(end, after);
    });
  }

  /// A warp: f(t, the place after token t, that at the chunk's end) for all tokens t.
  template <class F>
  static __device__ void for_tokens(const Shard& s, const ChunkOf& chunk, F&& f) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, t = 2 * lane;
    const double first = step(s, chunk, t), both = join(first, step(s, chunk, t + 1));
    double sum = both;
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const double earlier = __shfl_up_sync(0xFFFFFFFFu, sum, offset);
      if (lane >= offset) sum = join(earlier, sum);
    }
    double before = __shfl_up_sync(0xFFFFFFFFu, sum, 1);
    if (lane == 0) before = 0;
    const double after[2] = {join(before, first), join(before, both)};
    const double end = __shfl_sync(0xFFFFFFFFu, after[1], kWarp - 1);
    f(t, after[0], end);
    f(t + 1, after[1], end);
  }

  /// From before the chunk to after token t, from there to the chunk's end, and over all of it.
  __device__ float enter(int t, int = 0) const {
    return from_start[t];
  }
  __device__ float leave(int t, int = 0) const {
    return to_end[t];
  }
  __device__ float through(int = 0) const {
    return from_start[kTile - 1];
  }
  /// From after token j to after token r >= j.
  __device__ float pair(int r, int j) const {
    return decay_between(place[r + 1], place[j + 1]);
  }

 private:
  /// Past the chunk's end nothing decays.
  static __device__ double step(const Shard& s, const ChunkOf& chunk, int t) {
    return t < chunk.count ? s.step(chunk.b, chunk.h, chunk.begin + t, 0) : 0.0;
  }
};

/// One decay a token and row of the state, for the 64 rows from `column0` on. All threads load, the
/// block synchronises before it and, inside, behind it.
struct LaneDecays {
  static constexpr bool kLanes = true;
  double place[kTile + 1][kTile + 1];  // [place][lane], padded

  /// What a thread has read of a quarter of the chunk.
  struct Logs {
    float at[kBlock];
    int64_t position;  // of the token that it looks at for its warp
    int count;         // tokens that there are; none where it is 0 or less
  };
  /// Reads them, for load(): all loads are on their way before any is waited for.
  static __device__ Logs fetch(const Shard& s, const ChunkOf& chunk, int column0) {
    const int begin = static_cast<int>(threadIdx.x) / kTile * kBlock;
    const int count = min(chunk.count - begin, kBlock), last = chunk.begin + chunk.count - 1;
    const auto token = [&](int i) { return min(chunk.begin + begin + i, last); };
    const int column = min(column0 + static_cast<int>(threadIdx.x) % kTile, s.lanes - 1);
    const float* from = s.log_decay + chunk.b * s.decay_batch + chunk.h * s.decay_head + column;
    Logs logs;
#pragma unroll
    for (int i = 0; i < kBlock; ++i) logs.at[i] = from[token(i) * s.decay_token];
    logs.position = s.position_of(chunk.b, token(static_cast<int>(threadIdx.x) % kBlock));
    logs.count = count;
    return logs;
  }

  __device__ void load(const Shard& s, const ChunkOf& chunk, int column0) {
    load(fetch(s, chunk, column0));
  }
  /// The block synchronises before this, not before fetch().
  __device__ void load(const Logs& logs) {
    const int lane = threadIdx.x % kTile;
    const int begin = static_cast<int>(threadIdx.x) / kTile * kBlock, end = begin + kBlock;
    const unsigned starts = __ballot_sync(0xFFFFFFFFu, logs.position == 0);
    double sum = 0;
#pragma unroll
    for (int i = 0; i < kBlock; ++i) {  // a quarter of the chunk, from 0
      const double step = starts >> i & 1 ? -kReset : Shard::step(logs.at[i]);
      sum = i < logs.count ? join(sum, step) : sum;
      place[begin + i + 1][lane] = sum;
    }
    if (begin == 0) place[0][lane] = 0;
    __syncthreads();
    double before = 0;
    for (int t = kBlock; t <= begin; t += kBlock) before = join(before, place[t][lane]);
    __syncthreads();
#pragma unroll 4
    for (int t = begin; t < end; ++t) place[t + 1][lane] = join(before, place[t + 1][lane]);
    __syncthreads();
  }

  template <class T = float>
  __device__ float enter(int t, int lane) const {
    return decay_between<T>(place[t + 1][lane], 0);
  }
  __device__ float leave(int t, int lane) const {
    return decay_between(place[kTile][lane], place[t + 1][lane]);
  }
  __device__ float through(int lane) const {
    return decay_between(place[kTile][lane], 0);
  }
  template <class T = float>
  __device__ float pair(int r, int j, int lane) const {
    return decay_between<T>(place[r + 1][lane], place[j + 1][lane]);
  }
  /// Whether the lane is reset just before a token of [t, end).
  __device__ bool resets(int t, int end, int lane) const {
    return place[t][lane] - place[end][lane] > kReset / 2;
  }
};

}  // namespace weft::cuda::state
