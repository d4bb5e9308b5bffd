#pragma once

#include <memory>

#include "models/state_input.hpp"
#include "parallel/sequence/halo.hpp"
#include "parallel/sequence/mix_states.hpp"

namespace weft {

/// A layer of the linear-attention family: letters L and G.
///
///   q, k, v, gates of x   ->   state mixer   ->   norm, output gate   ->   projection
///
/// Two things cross the sequence axis: the state, by the scan, beside the output gate's projection
/// and what else needs no state; and, with short convolutions, the few tokens before the shard,
/// beside the projections of the gates. What arrived is kept under every policy of recomputation,
/// so that nothing is communicated a second time.
class StateMixer final : public Layer {
 public:
  /// `prefix`: "model.layers.<layer>.linear_attn."
  StateMixer(const std::string& prefix, int layer, const ModelConfig& config,
             const StateLayout& layout, const TensorPlace& place, std::unique_ptr<StateScan> scan);

  void forward(const Tensor& y, const Tensor& x, Frame& frame, StepContext& ctx) override;
  void backward(const Tensor& dx, const Tensor& dy, const Arriving& x, Frame& frame,
                StepContext& ctx) override;
  void visit(const std::function<void(Parameter&)>& f) override;

 private:
  /// The slots of one micro-batch, in the order in which they are pushed.
  struct Slots {
    StateInput::Slots q, k, v;
    DecayValues gates;
    std::array<Tensor, 2> gate_activations;
    Tensor output_gate;  // [B, T, H, V]
    Tensor entering;     // [B, H, K, V], the state that enters the shard
    Tensor out;          // [B, T, H, V], the mixer's
    Tensor squares;      // [R], the sum of out^2 over all heads; of a norm over the whole token
    Tensor rstd;         // of each row of the norm
  };
  Slots push(Frame& frame, int64_t halo, DType dtype) const;
  Slots peek(const Frame& frame) const;
  void pop(Frame& frame) const;

  TokenHalo halo(const Frame& frame, Tag::Pass pass, StepContext& ctx) const;
  /// Projections and gates: all that the mixer reads.
  void make_inputs(const Slots& slots, const Tensor& x, const TokenHalo& halo, Frame& frame,
                   StepContext& ctx) const;
  void make_gates(const Slots& slots, const Tensor& x, StepContext& ctx) const;
  /// heads: [B, T, H] or [B, T, H, D], of the rank's heads.
  void observe(const char* name, const Tensor& heads, const Frame& frame, StepContext& ctx) const;
  void observe(const Slots& slots, const Frame& frame, StepContext& ctx) const;
  StateShard shard(const Slots& slots, const Frame& frame) const;
  StateGradients allocate_gradients(const Slots& slots, Arena& arena) const;
  /// dx += what comes through q, k, v and the gates.
  void backward_inputs(const Tensor& dx, const StateGradients& d, const Slots& slots,
                       const Tensor& x, Frame& frame, StepContext& ctx) const;

  bool gated() const { return layout_.output_gate != GateFunction::none; }
  /// Whether a norm is over a whole token, whose heads may lie on several ranks.
  bool norms_tokens() const { return !layout_.family->norm_heads; }
  /// From sums [R] over the rank's heads to sums over all heads, on every rank.
  void sum_over_heads(const Tensor& sums, Tag::Pass pass, const Frame& frame,
                      StepContext& ctx) const;
  /// [B, T, H, V] as the rows of the norm, or of the rank's part of it.
  Tensor norm_rows(const Tensor& heads) const;

  int layer_;
  StateLayout layout_;
  Piece heads_;                          // H of all
  std::vector<double> fixed_log_decay_;  // [H], of kind fixed
  StateInput q_, k_, v_;
  std::unique_ptr<DecayGate> gate_;  // of kinds whose decay depends on the token
  Linear output_gate_;
  Parameter norm_;  // [V], or over the whole token [H V]
  double eps_;
  Linear o_;
  std::unique_ptr<StateScan> scan_;
};

}  // namespace weft
