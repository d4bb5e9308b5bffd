// What each segment alone adds to the state is summed for all of them side by side, a state is
// carried over those sums in order, and each segment is computed from the state that enters it.
#include "src/kernels/cuda/state_in_segments.hpp"

#include "src/kernels/cuda/state_segments.cuh"

namespace weft::cuda::state::segments {
namespace {

float* optional_f32(const Tensor& t) {
  return t ? elements<float>(t) : nullptr;
}

/// One call: its shard and its scratch with the places of the tokens.
struct Call {
  Call(const StateTokens& tokens, const Tensor& memory, Stream& on)
      : scratch(memory.data, tokens.kind, tokens.k.dtype, StateShape::of(tokens)),
        g{Shard::of(tokens),
          tokens.k.dim(0) * tokens.k.dim(2),
          static_cast<int>(scratch.segments.count),
          static_cast<int>(scratch.segments.chunks),
          reinterpret_cast<const ChunkPlaces*>(scratch.places),
          nullptr,
          nullptr},
        stream(on) {
    place_tokens(g, scratch, stream);
    as_chunks = g.s;
    as_chunks.chunks = g.segments;
  }

  ChunkMatrices<float> matrices(float* data) const {
    return ChunkMatrices<float>::of(data, as_chunks, g.segments);
  }
  /// The state over all segments, of which each adds `added` [B H, segments, K, V]; those before
  /// (backwards: behind) each of them, if wanted, to `before`.
  void carry_over(float* added, float* before, bool backwards, const float* start,
                  float* end) const {
    const auto sums = ChunkMatrices<const float>::of(added, as_chunks, g.segments);
    carry(as_chunks, g.heads, ChunkLogs{scratch.segment_logs}, CarryRange{0, g.segments, backwards},
          sums, matrices(before), start, end, stream);
  }

  /// The shard as a map.
  void summarize(const ChunkProducts<bf16>& products, const Tensor& added, const Tensor& state,
                 const Tensor& transition_out) const {
    // One segment adds what the shard does: nobody asks for it again, and an empty shard has no
    // chunk to keep it.
    float* sums = g.segments == 1 ? scratch.segment_states : elements<float>(added);
    sum_segments(g, products, sums, stream);
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

  Scratch scratch;
  Segmented g;
  Shard as_chunks;  // the segments instead of the chunks
  Stream& stream;
};

ChunkProducts<bf16> added_by_keys(const StateTokens& tokens) {
  return {Rows<const bf16>::of(tokens.k), Rows<const bf16>::of(tokens.v), 1.0f, true};
}

SegmentGradientArgs gradients_of(const Call& call, const StateGradients& g, const Tensor& q,
                                 const Tensor& dout, const Tensor& entering, double scale,
                                 const StateTokens& tokens) {
  SegmentGradientArgs a{};
  a.q = Rows<const bf16>::of(q), a.k = Rows<const bf16>::of(tokens.k);
  a.v = Rows<const bf16>::of(tokens.v), a.dout = Rows<const bf16>::of(dout);
  a.dq = Rows<float>::of(g.dq), a.dk = Rows<float>::of(g.dk), a.dv = Rows<float>::of(g.dv);
  if (const Tensor& log = g.dlog_decay) {
    a.dlog_decay = elements<float>(log);
    a.decay_batch = log.stride[0], a.decay_token = log.stride[1], a.decay_head = log.stride[2];
  }
  a.entering = ChunkMatrices<bf16>::of(reinterpret_cast<bf16*>(elements<float>(entering)), call.g.s,
                                       call.g.s.chunks);
  a.parts = {reinterpret_cast<float2*>(call.scratch.decay_parts), call.scratch.passing};
  a.scale = static_cast<float>(scale);
  return a;
}

}  // namespace

void summarize(const StateSummaryArgs& args, Stream& stream) {
  Call(args.tokens, args.scratch, stream)
      .summarize(added_by_keys(args.tokens), args.chunk_states, args.state, args.transition);
}

void apply(const StateApplyArgs& args, Stream& stream) {
  const Call call(args.tokens, args.scratch, stream);
  segment_outputs(call.reached(elements<float>(args.chunk_states), false, args.h0),
                  {Rows<const bf16>::of(args.q), Rows<const bf16>::of(args.tokens.k),
                   Rows<const bf16>::of(args.tokens.v), Rows<float>::of(args.out),
                   optional_f32(args.hT), static_cast<float>(args.scale)},
                  stream);
}

void cosummarize(const StateCosummaryArgs& args, Stream& stream) {
  Call(args.tokens, args.scratch, stream)
      .summarize({Rows<const bf16>::of(args.q), Rows<const bf16>::of(args.dout),
                  static_cast<float>(args.scale), false},
                 args.chunk_costates, args.state, args.transition);
}

void backward_local(const StateBackwardLocalArgs& args, Stream& stream) {
  const Call call(args.tokens, args.scratch, stream);
  float* sums = call.scratch.segment_states;
  if (call.g.segments > 1) sum_segments(call.g, added_by_keys(args.tokens), sums, stream);
  segment_query_gradients(
      call.reached(sums, false, args.h0),
      gradients_of(call, args.gradients, args.q, args.dout, args.entering, args.scale, args.tokens),
      stream);
}

void backward_apply(const StateBackwardApplyArgs& args, Stream& stream) {
  const Call call(args.tokens, args.scratch, stream);
  SegmentGradientArgs gradients =
      gradients_of(call, args.gradients, args.q, args.dout, args.entering, args.scale, args.tokens);
  gradients.dh0 = optional_f32(args.dh0);
  segment_key_gradients(call.reached(elements<float>(args.chunk_costates), true, args.dhT),
                        gradients, stream);
}

}  // namespace weft::cuda::state::segments
