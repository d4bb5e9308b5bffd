// Gated linear attention with one decay a head and token, as flash-linear-attention has it:
//   log alpha = log sigmoid(W x + bias) / 16
// behind short convolutions.
#include "models/linear.hpp"
#include "models/state_family.hpp"
#include "src/kernels/decay_gates.hpp"

namespace weft {
namespace {

class HeadDecay final : public DecayGate {
 public:
  HeadDecay(const std::string& prefix, const ModelConfig& config, const StateLayout& layout)
      : normalizer_(config.linear.gate_normalizer.value_or(16)),
        projection_(prefix + "gk_proj.weight", config.hidden_size, layout.heads,
                    fan_in_std(config.hidden_size)),
        bias_{.name = prefix + "gk_proj.bias",
              .shape = {layout.heads},
              .init = Parameter::Init::zeros} {}

  std::array<int64_t, 2> widths() const override { return {bias_.shape[0], 0}; }

  void forward(const DecayValues& values, const std::array<Tensor, 2>& activations, const Tensor& x,
               StepContext& ctx) const override {
    projection_.forward(activations[0], x, ctx);
    sigmoid_decay_forward({.log_decay = values.log_decay.rows(),
                           .x = activations[0],
                           .bias = ctx.weight(bias_),
                           .normalizer = normalizer_},
                          ctx.compute);
  }

  void backward(const Tensor& dx, const DecayValues& gradients, const DecayValues&,
                const std::array<Tensor, 2>& activations, const Tensor& x,
                StepContext& ctx) const override {
    const Scope scope(ctx.scratch);
    const Tensor d = ctx.scratch.allocate("dgate", x.dtype, {x.dim(0), bias_.shape[0]});
    sigmoid_decay_backward({.dx = d,
                            .dbias = ctx.gradient(bias_),
                            .dlog_decay = gradients.log_decay.rows(),
                            .x = activations[0],
                            .bias = ctx.weight(bias_),
                            .normalizer = normalizer_},
                           ctx.compute);
    projection_.backward(dx, d, x, ctx, /*accumulate=*/true);
  }

  void visit(const std::function<void(Parameter&)>& f) override {
    f(projection_.weight);
    f(bias_);
  }

 private:
  double normalizer_;
  Linear projection_;
  Parameter bias_;  // [H]
};

}  // namespace

const StateFamily kSimpleGlaFamily{
    .name = "simple_gla",
    .summary = "one decay a head and token, behind short convolutions",
    .kind = StateKind::scalar,
    .taps = 4,
    .make_gate = [](const std::string& prefix, const ModelConfig& config,
                    const StateLayout& layout) -> std::unique_ptr<DecayGate> {
      return std::make_unique<HeadDecay>(prefix, config, layout);
    }};

}  // namespace weft
