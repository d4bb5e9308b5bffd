// The diagonal kinds in bf16: a shard in segments that are computed side by side
// (docs/state_mixers.md, On a GPU).
#pragma once

#include "src/kernels/cuda/state_carry.cuh"
#include "src/kernels/cuda/state_panels.cuh"
#include "src/kernels/cuda/state_scratch.hpp"

namespace weft::cuda::state {

/// The places of a chunk's tokens (state_shard.cuh), each as the f32 next to it and what that
/// leaves: differences are as good as those of f64 are once they are rounded to f32.
struct ChunkPlaces {
  float2 after[kTile];

  __device__ float enter(int t) const { return expf(after[t].x + after[t].y); }
  __device__ float leave(int t) const { return pair(kTile - 1, t); }
  __device__ float through() const { return enter(kTile - 1); }
  /// From after token j to after token r >= j.
  __device__ float pair(int r, int j) const {
    return expf((after[r].x - after[j].x) + (after[r].y - after[j].y));
  }
  /// Of the chunk's resets, those before token t or at it.
  __device__ int resets(int t) const {
    return static_cast<int>(-after[t].x * static_cast<float>(1 / kReset));
  }
};

/// Calls f(i, half, c, e, decay) for the numbers of a sum over pairs of tokens (row r, column j),
/// number at[i][c][2 half + e]: the decay from j to r times `scale`, 0 for j > r.
template <class Sum, class F>
__device__ void for_pair_decays(const ChunkPlaces& places, float scale, F&& f) {
  float2 column[Sum::kColumns][2];
#pragma unroll
  for (int c = 0; c < Sum::kColumns; ++c) {
    column[c][0] = places.after[Sum::column(c)];
    column[c][1] = places.after[Sum::column(c) + 1];
  }
  Sum::for_rows([&](int i, int half, int r) {
    const float2 row = places.after[r];
#pragma unroll
    for (int c = 0; c < Sum::kColumns; ++c) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float log = (row.x - column[c][e].x) + (row.y - column[c][e].y);
        f(i, half, c, e, scale * expf(Sum::column(c) + e <= r ? log : -INFINITY));
      }
    }
  });
}

/// A shard in segments: what a kernel of theirs knows of it.
struct Segmented {
  Shard s;
  int64_t heads;              // B H
  int segments, each;         // chunks
  const ChunkPlaces* places;  // [B H, chunks]; of one decay a token
  float* states;              // [B H, segments, K, V]: what enters each (backwards: its gradient
                              // where it leaves); null: `outer` alone, for one segment
  const float* outer;         // [B H, K, V]: what enters the shard (backwards: leaves); null: 0

  /// A block a segment of a head.
  struct At {
    int b, h, index, first, count;  // chunks
    int64_t bh;
  };
  __device__ At at(int block) const {
    const int bh = block / segments, index = block % segments, first = index * each;
    return {bh / s.heads, bh % s.heads, index, first, min(each, s.chunks - first), bh};
  }
  __device__ View<const float> state(const At& at) const {
    const int64_t size = static_cast<int64_t>(s.key_dim) * s.value_dim;
    const float* from =
        states != nullptr ? states + (at.bh * segments + at.index) * size : outer + at.bh * size;
    return {from, s.value_dim, outer == nullptr && states == nullptr ? 0 : s.key_dim, s.value_dim,
            false};
  }
  /// What [B H, segments, K, V] has for the segment of a block.
  __device__ View<float> sum(float* of, unsigned block) const {
    const int64_t size = static_cast<int64_t>(s.key_dim) * s.value_dim;
    return {of + block * size, s.value_dim, s.key_dim, s.value_dim, s.value_dim % 2 == 0};
  }
  __device__ View<float> end(float* of, const At& at) const {
    const int64_t size = static_cast<int64_t>(s.key_dim) * s.value_dim;
    return {of + at.bh * size, s.value_dim, s.key_dim, s.value_dim, false};
  }
  /// Chunk n of a segment.
  template <class T>
  __device__ View<T> rows(const Rows<T>& of, const At& at, int n) const {
    const int begin = (at.first + n) * kTile;
    return of.view(at.b, at.h, begin, min(kTile, s.tokens - begin));
  }
  __device__ int tokens(const At& at, int n) const {
    return min(kTile, s.tokens - (at.first + n) * kTile);
  }
  /// Loads its places, beside the computation.
  __device__ void load(ChunkPlaces& to, const At& at, int n) const {
    constexpr int kPacks = sizeof(ChunkPlaces) / 16;
    const int i = static_cast<int>(threadIdx.x);
    if (i < kPacks)
      copy_beside(&to.after[2 * i], &places[at.bh * s.chunks + at.first + n].after[2 * i]);
  }
};

/// Calls f with the widths, as constants, that keys and values are padded to.
template <class F>
void with_widths(const Shard& s, F&& f) {
  const auto keys = [&](auto k) {
    if (s.value_dim <= 64) {
      f(k, std::integral_constant<int, 64>{});
    } else {
      f(k, std::integral_constant<int, 128>{});
    }
  };
  if (s.key_dim <= 64) {
    keys(std::integral_constant<int, 64>{});
  } else {
    keys(std::integral_constant<int, 128>{});
  }
}

template <int Warps, class Kernel, class... Args>
void launch_warps(Kernel kernel, int64_t blocks, size_t shared_bytes, Stream& stream,
                  const Args&... args) {
  if (blocks == 0) return;
  WEFT_CALL(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes)));
  kernel<<<grid_of(blocks), Warps * kWarp, shared_bytes, native(stream)>>>(args...);
  WEFT_CALL(cudaGetLastError());
}

/// The places of all tokens, and the logs of the decays over chunks and segments, in scratch.
void place_tokens(const Segmented& g, const Scratch& scratch, Stream& stream);
/// The logs alone, of vector.
void sum_lane_logs(const Segmented& g, const Scratch& scratch, Stream& stream);

/// out [B H, segments, K, V] = what each segment alone adds to the state that leaves it, or
/// (`backwards`) to the gradient of the one that enters it.
void sum_segments(const Segmented& g, const ChunkProducts<bf16>& products, float* out,
                  Stream& stream);

struct SegmentOutputArgs {
  Rows<const bf16> q, k, v;
  Rows<float> out;
  float* hT;  // null: not wanted
  float scale;
};
/// Outputs and the leaving state, g.states being the entering states.
void segment_outputs(const Segmented& g, const SegmentOutputArgs& args, Stream& stream);
/// Adds to out, for vector, what is read of the entering states; and the leaving state.
void add_lane_outputs(const Segmented& g, const SegmentOutputArgs& args, Stream& stream);

/// What gradients of decays are summed from (docs/state_mixers.md, Gradients of decays), in
/// scratch.
struct DecayParts {
  float2* tokens;  // [B H, chunks, 64]: of the pairs of a token with others, those that it ends
                   // less those that it begins; k . dk of what leaves
  float* passing;  // [B H, chunks]: <S, D>
};

struct SegmentGradientArgs {
  Rows<const bf16> q, k, v, dout;
  Rows<float> dq, dk, dv;
  float* dlog_decay;                             // null: not wanted
  int64_t decay_batch, decay_token, decay_head;  // strides
  ChunkMatrices<bf16> entering;                  // [B H, chunks, K, V]; with dlog_decay alone
  DecayParts parts;                              // likewise
  float* dh0;                                    // null: not wanted
  float scale;

  /// Of token t of a segment's chunk n.
  __device__ float* dlog(const Segmented::At& at, int n, int t) const {
    return dlog_decay + at.b * decay_batch + ((at.first + n) * int64_t{kTile} + t) * decay_token +
           at.h * decay_head;
  }
};
/// dq, and where decays are trained the state entering every chunk and, in dlog_decay, what each
/// token reads of it.
void segment_query_gradients(const Segmented& g, const SegmentGradientArgs& args, Stream& stream);
/// dk, dv, dh0 and dlog_decay, g.states being the gradients of the leaving states.
void segment_key_gradients(const Segmented& g, const SegmentGradientArgs& args, Stream& stream);

/// The carry of the vector kind through its segments, backwards where the products are of q and
/// dout.
struct LaneCarry {
  ChunkProducts<bf16> products;
  ChunkMatrices<float> before;  // [B H, chunks, K, V]: the state before each chunk (backwards:
                                // behind); no data: not wanted
  float* end;                   // [B H, segments, K, V]: that leaves each; null: not wanted
};
void carry_lanes(const Segmented& g, const LaneCarry& args, Stream& stream);

struct LaneLeavingArgs {
  Rows<const bf16> q, k, v, dout;
  Rows<float> dk, dv, dlog_decay;
  ChunkMatrices<const float> entering;  // [B H, chunks, K, V]
  float* dh0;                           // null: not wanted
  float scale;
};
/// Adds to dk, dv and dlog_decay of vector, g.states being the gradients of the leaving states.
void add_lane_leaving(const Segmented& g, const LaneLeavingArgs& args, Stream& stream);

}  // namespace weft::cuda::state
