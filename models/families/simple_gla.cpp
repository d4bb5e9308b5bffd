// Gated linear attention with one decay a head and token, as flash-linear-attention has it:
//   log alpha = log sigmoid(W x + bias) / 16
// behind short convolutions.
#include "models/linear.hpp"
#include "models/sigmoid_decay.hpp"
#include "models/state_family.hpp"

namespace weft {
namespace {

class HeadDecay final : public DecayGate {
 public:
  HeadDecay(const std::string& prefix, const ModelConfig& config, const Piece& heads)
      : projection_(prefix + "gk_proj.weight", config.hidden_size, heads,
                    fan_in_std(config.hidden_size)),
        decay_(prefix + "gk_proj.bias", heads, config) {}

  std::array<int64_t, 2> widths() const override { return {decay_.width(), 0}; }

  void forward(const DecayValues& values, const std::array<Tensor, 2>& activations, const Tensor& x,
               StepContext& ctx) const override {
    projection_.forward(activations[0], x, ctx);
    decay_.forward(values.log_decay, activations[0], ctx);
  }

  void backward(const Tensor& dx, const DecayValues& gradients, const DecayValues&,
                const std::array<Tensor, 2>& activations, const Tensor& x,
                StepContext& ctx) const override {
    const Scope scope(ctx.scratch);
    const Tensor d = ctx.scratch.allocate("dgate", x.dtype, {x.dim(0), decay_.width()});
    decay_.backward(d, gradients.log_decay, activations[0], ctx);
    projection_.backward(dx, d, x, ctx, /*accumulate=*/true);
  }

  void visit(const std::function<void(Parameter&)>& f) override {
    f(projection_.weight);
    f(decay_.bias);
  }

 private:
  Linear projection_;
  SigmoidDecay decay_;  // [H]
};

}  // namespace

const StateFamily kSimpleGlaFamily{
    .name = "simple_gla",
    .summary = "one decay a head and token, behind short convolutions",
    .kind = StateKind::scalar,
    .taps = 4,
    .make_gate = [](const std::string& prefix, const ModelConfig& config, const StateLayout& layout,
                    const TensorPlace& place) -> std::unique_ptr<DecayGate> {
      return std::make_unique<HeadDecay>(prefix, config, place.piece(layout.heads));
    }};

}  // namespace weft
