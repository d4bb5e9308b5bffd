// State mixers: layers of the linear-attention family, whose memory of the past is one matrix a
// head. A token decays the state, then writes to it, and reads what it wrote:
//
//   diagonal kinds   S_t = diag(alpha_t) S_{t-1} + k_t v_t^T
//
//   delta            S_t = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T
//
//   all              o_t = S_t^T (scale q_t)
//
// A shard is therefore an affine map of the state that enters it, S_out = A S_in + b, and so is its
// gradient, D_in = A^T D_out + E. Each direction is three passes: a summary that needs no boundary
// value, what can be done before that value has arrived, and the rest. The scan over ranks runs
// between the first and the last. Equations and derivations: docs/state_mixers.md.
#pragma once

#include <optional>

#include "src/core/cost.hpp"
#include "src/core/device.hpp"
#include "src/core/kernel_call.hpp"
#include "src/tensor/tensor.hpp"

namespace weft {

/// How the state decays. The first four are *diagonal*: no row of the state reads another.
enum class StateKind {
  none,    // alpha = 1: basic linear attention
  fixed,   // one alpha a head, not trained: Lightning, RetNet
  scalar,  // one alpha a head and token: simple GLA, Mamba-2
  vector,  // one alpha a head, token and row of the state: GLA
  delta,   // scalar, and the token removes what its key reads before it writes: Gated DeltaNet
};

/// What the tokens of a shard do to the state. Every stride is free but the innermost, which is 1.
/// All of one floating type, gates of its accumulator type. T may be 0.
struct StateTokens {
  StateKind kind = StateKind::none;
  Tensor k;          // [B, T, H, K]
  Tensor v;          // [B, T, H, V]
  Tensor log_decay;  // log alpha <= 0; fixed [H], scalar and delta [B, T, H], vector [B, T, H, K];
                     // absent for none. -inf, or anything below -745, is alpha = 0
  Tensor beta;       // delta: [B, T, H]; otherwise absent
  Tensor positions;  // [B, T] i64, inside the document: the state is reset to 0 before a token at 0
};

/// States are [B, H, K, V], contiguous, of the accumulator type. So is a transition A: of a
/// diagonal kind the log of the decay over the shard, [B, H] or for vector [B, H, K]; for delta the
/// dense [B, H, K, K] that multiplies the state from the left. It is -inf, for delta 0, when a
/// document starts in the shard, and the identity (log 0, or I) for an empty shard.

/// Tokens that are computed together, counted from the shard's first whatever the documents.
inline constexpr int64_t kStateChunk = 64;
/// ceil(tokens / kStateChunk)
int64_t state_chunks(int64_t tokens);

/// B, T, H, K, V of a shard.
struct StateShape {
  int64_t batch = 0, tokens = 0, heads = 0, key_dim = 0, value_dim = 0;

  static StateShape of(const StateTokens& tokens);
};

/// Scratch of one call of any pass on the CPU, whatever B, T and H.
int64_t state_scratch_bytes(StateKind kind, DType dtype, int64_t key_dim, int64_t value_dim);
/// The same on `device`. A GPU computes all heads and many chunks at once: what it needs grows with
/// B H, and with T up to a bound, but for a few bytes a token and head.
int64_t state_scratch_bytes(Device device, StateKind kind, DType dtype, const StateShape& shape);

/// States that one pass of a shard hands to another: [B, H, count, K, V] of `dtype`, contiguous.
struct HandedStates {
  int64_t count = 0;
  DType dtype = DType::f32;
};
/// What chunk_states, and chunk_costates, have to be on `device`; none: absent. A CPU keeps what
/// each chunk adds, of delta nothing. So does a GPU for vector in f32; in bf16 what each segment
/// adds, where there are several (docs/state_mixers.md, Segments); otherwise nothing.
std::optional<HandedStates> chunk_states_of(Device device, StateKind kind, DType dtype,
                                            const StateShape& shape);
/// The same of `entering`: a state for every chunk. In bf16 on a GPU, of kinds with one decay a
/// token, it is bf16, and none where decays are not trained.
std::optional<HandedStates> entering_states_of(Device device, StateKind kind, DType dtype,
                                               const StateShape& shape);

/// The shard as a map of the entering state: S_out = transition S_in + state.
struct StateSummaryArgs {
  Tensor transition;    // out; shape by kind
  Tensor state;         // out [B, H, K, V]: what leaves when nothing enters
  Tensor chunk_states;  // out (chunk_states_of): what each chunk, or segment, alone adds to the
                        // state that leaves it, for state_apply
  Tensor scratch;       // u8 [state_scratch_bytes], of the tokens' device
  StateTokens tokens;
};
Cost cost(const StateSummaryArgs& args);
std::vector<Product> products(const StateSummaryArgs& args);
void state_summarize(const StateSummaryArgs& args, Stream& stream);

/// The outputs as far as they come from the token's own chunk; needs no entering state. For delta
/// there is no such part (every output depends on the entering state through what the keys read
/// from it): out is left alone, nothing runs. So it is in bf16 on a GPU for kinds with one decay a
/// token, where state_apply makes both parts at once.
struct StateLocalArgs {
  Tensor out;      // [B, T, H, V], accumulator type
  Tensor scratch;  // u8 [state_scratch_bytes]
  Tensor q;        // [B, T, H, K]
  double scale = 1.0;
  StateTokens tokens;
};
Cost cost(const StateLocalArgs& args);
std::vector<Product> products(const StateLocalArgs& args);
void state_local(const StateLocalArgs& args, Stream& stream);

/// The rest of the outputs, from the state that enters the shard. The state is carried from chunk
/// to chunk in order: a shard cut after a whole chunk gives the same bits. Not so for diagonal
/// kinds in bf16 on a GPU: there it is carried so inside segments of 16 chunks or more, whose
/// length the shape decides, and only a shard of one segment keeps its bits when it is cut.
struct StateApplyArgs {
  Tensor out;           // [B, T, H, V]; adds to what state_local wrote; where that leaves it alone,
                        // written
  Tensor hT;            // out [B, H, K, V]: the state that leaves; absent: not wanted
  Tensor h0;            // [B, H, K, V]: the state that enters; absent: 0
  Tensor chunk_states;  // of state_summarize
  Tensor scratch;       // u8 [state_scratch_bytes]
  Tensor q;             // [B, T, H, K]
  double scale = 1.0;
  StateTokens tokens;
};
Cost cost(const StateApplyArgs& args);
std::vector<Product> products(const StateApplyArgs& args);
void state_apply(const StateApplyArgs& args, Stream& stream);

/// The shard as a map of the gradient of the state that leaves it: D_in = transition^T D_out +
/// state.
struct StateCosummaryArgs {
  Tensor transition;      // out; as state_summarize gives it, not transposed; absent: not wanted
  Tensor state;           // out [B, H, K, V]: gradient of the entering state when D_out is 0
  Tensor chunk_costates;  // out (chunk_states_of): what each chunk, or segment, alone adds to the
                          // gradient of its entering state, for state_backward_apply
  Tensor scratch;         // u8 [state_scratch_bytes]
  Tensor q, dout;         // [B, T, H, K], [B, T, H, V]
  double scale = 1.0;
  StateTokens tokens;
};
Cost cost(const StateCosummaryArgs& args);
std::vector<Product> products(const StateCosummaryArgs& args);
void state_cosummarize(const StateCosummaryArgs& args, Stream& stream);

/// Gradients of a shard's inputs, of the accumulator type; innermost stride 1.
struct StateGradients {
  Tensor dq, dk;      // [B, T, H, K]
  Tensor dv;          // [B, T, H, V]
  Tensor dlog_decay;  // as log_decay; absent for none and fixed. Exactly 0 where alpha is 0
  Tensor dbeta;       // delta: [B, T, H]; otherwise absent
};

/// The backward as far as it needs no gradient of the leaving state: for diagonal kinds dq, and dk,
/// dv and dlog_decay but for what comes through that gradient; for delta the entering states only.
/// In bf16 on a GPU, for kinds with one decay a token, dq alone; what dlog_decay then holds is
/// between this pass and the next.
struct StateBackwardLocalArgs {
  StateGradients gradients;
  Tensor entering;  // out (entering_states_of): the state that enters each chunk
  Tensor h0;        // as in state_apply
  Tensor scratch;   // u8 [state_scratch_bytes]
  Tensor q, dout;   // [B, T, H, K], [B, T, H, V]
  double scale = 1.0;
  StateTokens tokens;
};
Cost cost(const StateBackwardLocalArgs& args);
std::vector<Product> products(const StateBackwardLocalArgs& args);
void state_backward_local(const StateBackwardLocalArgs& args, Stream& stream);

/// The rest of the backward, from the gradient of the state that leaves the shard.
struct StateBackwardApplyArgs {
  StateGradients gradients;  // adds to what state_backward_local wrote; what that left, written
  Tensor dh0;                // out [B, H, K, V]; absent: not wanted
  Tensor dhT;                // [B, H, K, V]: gradient of the state that leaves; absent: 0
  Tensor entering;           // of state_backward_local
  Tensor chunk_costates;     // of state_cosummarize
  Tensor scratch;            // u8 [state_scratch_bytes]
  Tensor q, dout;            // [B, T, H, K], [B, T, H, V]
  double scale = 1.0;
  StateTokens tokens;
};
Cost cost(const StateBackwardApplyArgs& args);
std::vector<Product> products(const StateBackwardApplyArgs& args);
void state_backward_apply(const StateBackwardApplyArgs& args, Stream& stream);

namespace cpu {
void state_summarize(const StateSummaryArgs& args);
void state_local(const StateLocalArgs& args);
void state_apply(const StateApplyArgs& args);
void state_cosummarize(const StateCosummaryArgs& args);
void state_backward_local(const StateBackwardLocalArgs& args);
void state_backward_apply(const StateBackwardApplyArgs& args);
}  // namespace cpu

namespace cuda {
void state_summarize(const StateSummaryArgs& args, Stream& stream);
void state_local(const StateLocalArgs& args, Stream& stream);
void state_apply(const StateApplyArgs& args, Stream& stream);
void state_cosummarize(const StateCosummaryArgs& args, Stream& stream);
void state_backward_local(const StateBackwardLocalArgs& args, Stream& stream);
void state_backward_apply(const StateBackwardApplyArgs& args, Stream& stream);
}  // namespace cuda

}  // namespace weft
