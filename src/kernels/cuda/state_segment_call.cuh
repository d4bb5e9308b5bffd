// One call of a pass that takes its shard in segments, as the host sees it.
#pragma once

#include "src/kernels/cuda/state_segments.cuh"

namespace weft::cuda::state {

inline SegmentOutputArgs segment_outputs_of(const StateApplyArgs& args) {
  return {Rows<const bf16>::of(args.q),
          Rows<const bf16>::of(args.tokens.k),
          Rows<const bf16>::of(args.tokens.v),
          Rows<float>::of(args.out),
          optional_f32(args.hT),
          static_cast<float>(args.scale)};
}

/// The shard, its scratch with the logs of its decays and, of one decay a token, the places.
struct SegmentCall {
  SegmentCall(const StateTokens& tokens, const Tensor& memory, Stream& on)
      : scratch(memory.data, tokens.kind, tokens.k.dtype, StateShape::of(tokens)),
        g{Shard::of(tokens),
          tokens.k.dim(0) * tokens.k.dim(2),
          static_cast<int>(scratch.segments.count),
          static_cast<int>(scratch.segments.chunks),
          reinterpret_cast<const ChunkPlaces*>(scratch.places),
          nullptr,
          nullptr},
        as_chunks(g.s),
        stream(on) {
    as_chunks.chunks = g.segments;
    scratch.places != nullptr ? place_tokens(g, scratch, stream)
                              : sum_lane_logs(g, scratch, stream);
  }

  /// What each segment adds: `sums` [B H, segments, K, V].
  void sum(const ChunkProducts<bf16>& products, float* sums) const {
    if (scratch.places != nullptr) return sum_segments(g, products, sums, stream);
    carry_lanes(g, LaneCarry{products, {}, sums}, stream);
  }

  /// The state over all segments, of which each adds `added`; those before (backwards: behind) each
  /// of them, if wanted, to `before`, which may be `added`.
  void carry_over(float* added, float* before, bool backwards, const float* start,
                  float* end) const {
    const auto sums = ChunkMatrices<const float>::of(added, as_chunks, g.segments);
    carry(as_chunks, g.heads, ChunkLogs{scratch.segment_logs}, CarryRange{0, g.segments, backwards},
          sums, ChunkMatrices<float>::of(before, as_chunks, g.segments), start, end, stream);
  }

  /// The shard as a map; what the segments add to `added`.
  void summarize(const ChunkProducts<bf16>& products, const Tensor& added, const Tensor& state,
                 const Tensor& transition_out) const {
    float* sums = added ? elements<float>(added) : scratch.segment_states;
    sum(products, sums);
    carry_over(sums, nullptr, !products.leaving, nullptr, elements<float>(state));
    if (!transition_out) return;
    transition(as_chunks, g.heads, ChunkLogs{scratch.segment_logs}, elements<float>(transition_out),
               stream);
  }

  /// Segments with the states that reach them when `outer` reaches the shard.
  Segmented reached(float* added, bool backwards, const Tensor& outer) const {
    Segmented with = g;
    with.outer = optional_f32(outer);
    if (g.segments == 1) return with;
    with.states = scratch.segment_states;
    carry_over(added, with.states, backwards, with.outer, nullptr);
    return with;
  }
  /// The same where what they add has not been summed yet.
  Segmented reached(const ChunkProducts<bf16>& products, const Tensor& outer) const {
    if (g.segments > 1) sum(products, scratch.segment_states);
    return reached(scratch.segment_states, !products.leaving, outer);
  }

  Scratch scratch;
  Segmented g;
  Shard as_chunks;  // the segments instead of the chunks
  Stream& stream;
};

}  // namespace weft::cuda::state
