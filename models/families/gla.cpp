// Gated linear attention (Yang et al., arXiv 2312.06635): one decay a head, token and row of the
// state, from a low-rank projection:
//   log alpha = log sigmoid(W1 W0 x + bias) / 16
// Keys are half as wide as the model.
#include "models/linear.hpp"
#include "models/sigmoid_decay.hpp"
#include "models/state_family.hpp"

namespace weft {
namespace {

class LowRankDecay final : public DecayGate {
 public:
  LowRankDecay(const std::string& prefix, const ModelConfig& config, const StateLayout& layout,
               const TensorPlace& place)
      : rank_(config.linear.gate_rank.value_or(16)),
        channels_(place.piece(layout.heads).times(layout.key_dim)),
        decay_(prefix + "gk_proj.1.bias", channels_, config),
        // Every rank makes the low rank, of which it needs all.
        down_(prefix + "gk_proj.0.weight", config.hidden_size, place.whole(rank_),
              fan_in_std(config.hidden_size)),
        up_(prefix + "gk_proj.1.weight", rank_, channels_, fan_in_std(rank_)) {}

  std::array<int64_t, 2> widths() const override { return {rank_, decay_.width()}; }

  void forward(const DecayValues& values, const std::array<Tensor, 2>& activations, const Tensor& x,
               StepContext& ctx) const override {
    down_.forward(activations[0], x, ctx);
    up_.forward(activations[1], activations[0], ctx);
    decay_.forward(values.log_decay, activations[1], ctx);
  }

  void backward(const Tensor& dx, const DecayValues& gradients, const DecayValues&,
                const std::array<Tensor, 2>& activations, const Tensor& x,
                StepContext& ctx) const override {
    const Scope scope(ctx.scratch);
    const Tensor d = ctx.scratch.allocate("dgate", x.dtype, {x.dim(0), decay_.width()});
    const Tensor dlow = ctx.scratch.allocate("dgate low rank", x.dtype, {x.dim(0), rank_});
    decay_.backward(d, gradients.log_decay, activations[1], ctx);
    up_.backward(dlow, d, activations[0], ctx);
    down_.backward(dx, dlow, x, ctx, /*accumulate=*/true);
  }

  void visit(const std::function<void(Parameter&)>& f) override {
    f(down_.weight);
    f(up_.weight);
    f(decay_.bias);
  }

 private:
  int64_t rank_;
  Piece channels_;      // of all heads' K
  SigmoidDecay decay_;  // [H K]
  Linear down_, up_;
};

}  // namespace

const StateFamily kGlaFamily{
    .name = "gla",
    .summary = "one decay a head, token and row of the state",
    .kind = StateKind::vector,
    .expand_k = 0.5,
    .make_gate = [](const std::string& prefix, const ModelConfig& config, const StateLayout& layout,
                    const TensorPlace& place) -> std::unique_ptr<DecayGate> {
      return std::make_unique<LowRankDecay>(prefix, config, layout, place);
    }};

}  // namespace weft
