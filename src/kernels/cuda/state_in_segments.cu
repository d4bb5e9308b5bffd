// What each segment alone adds to the state is summed for all of them side by side, a state is
// carried over those sums in order, and each segment is computed from the state that enters it.
#include "src/kernels/cuda/state_in_segments.hpp"

#include "src/kernels/cuda/state_gradients.cuh"
#include "src/kernels/cuda/state_segment_call.cuh"

namespace weft::cuda::state::segments {
namespace {

SegmentGradientArgs gradients_of(const SegmentCall& call, const StateGradients& g, const Tensor& q,
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
  if (entering) {
    a.entering = ChunkMatrices<bf16>::of(elements<bf16>(entering), call.g.s, call.g.s.chunks);
  }
  a.parts = {reinterpret_cast<float2*>(call.scratch.decay_parts), call.scratch.passing};
  a.scale = static_cast<float>(scale);
  return a;
}

/// The state before each chunk, and what comes of it and of the pairs inside a chunk.
void lane_gradients(const SegmentCall& call, const StateBackwardLocalArgs& args, Stream& stream) {
  const Shard& s = call.g.s;
  const auto products = added_by_keys<bf16>(args.tokens);
  float* entering = elements<float>(args.entering);
  carry_lanes(call.reached(products, args.h0),
              LaneCarry{products, ChunkMatrices<float>::of(entering, s, s.chunks), nullptr},
              stream);
  local_gradients(
      s, call.g.heads,
      GradientArgs<bf16>::of(args.gradients, args.q, args.dout, args.scale, args.tokens),
      ChunkMatrices<const float>::of(entering, s, s.chunks), stream);
}

LaneLeavingArgs lane_leaving_of(const SegmentCall& call, const StateBackwardApplyArgs& args) {
  const Shard& s = call.g.s;
  return {Rows<const bf16>::of(args.q),
          Rows<const bf16>::of(args.tokens.k),
          Rows<const bf16>::of(args.tokens.v),
          Rows<const bf16>::of(args.dout),
          Rows<float>::of(args.gradients.dk),
          Rows<float>::of(args.gradients.dv),
          Rows<float>::of(args.gradients.dlog_decay),
          ChunkMatrices<const float>::of(elements<float>(args.entering), s, s.chunks),
          optional_f32(args.dh0),
          static_cast<float>(args.scale)};
}

}  // namespace

void summarize(const StateSummaryArgs& args, Stream& stream) {
  SegmentCall(args.tokens, args.scratch, stream)
      .summarize(added_by_keys<bf16>(args.tokens), args.chunk_states, args.state, args.transition);
}

void apply(const StateApplyArgs& args, Stream& stream) {
  const SegmentCall call(args.tokens, args.scratch, stream);
  const Segmented entered = call.reached(optional_f32(args.chunk_states), false, args.h0);
  const bool lanes = args.tokens.kind == StateKind::vector;
  (lanes ? add_lane_outputs : segment_outputs)(entered, segment_outputs_of(args), stream);
}

void cosummarize(const StateCosummaryArgs& args, Stream& stream) {
  SegmentCall(args.tokens, args.scratch, stream)
      .summarize(added_by_queries<bf16>(args.q, args.dout, args.scale), args.chunk_costates,
                 args.state, args.transition);
}

void backward_local(const StateBackwardLocalArgs& args, Stream& stream) {
  const SegmentCall call(args.tokens, args.scratch, stream);
  if (args.tokens.kind == StateKind::vector) return lane_gradients(call, args, stream);
  segment_query_gradients(
      call.reached(added_by_keys<bf16>(args.tokens), args.h0),
      gradients_of(call, args.gradients, args.q, args.dout, args.entering, args.scale, args.tokens),
      stream);
}

void backward_apply(const StateBackwardApplyArgs& args, Stream& stream) {
  const SegmentCall call(args.tokens, args.scratch, stream);
  const Segmented left = call.reached(optional_f32(args.chunk_costates), true, args.dhT);
  if (args.tokens.kind == StateKind::vector) {
    return add_lane_leaving(left, lane_leaving_of(call, args), stream);
  }
  SegmentGradientArgs gradients =
      gradients_of(call, args.gradients, args.q, args.dout, args.entering, args.scale, args.tokens);
  gradients.dh0 = optional_f32(args.dh0);
  segment_key_gradients(left, gradients, stream);
}

}  // namespace weft::cuda::state::segments
