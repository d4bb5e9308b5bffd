// The gated delta rule (Gated DeltaNet, Yang et al., arXiv 2412.06464): a token decays the state,
// takes out what its key reads, and writes its value in its place:
//   log alpha = -exp(A_log) softplus(Wa x + dt_bias),   beta = sigmoid(Wb x)
// behind short convolutions, with keys of length 1; values are twice as wide as keys.
#include <algorithm>
#include <cmath>

#include "models/linear.hpp"
#include "models/state_family.hpp"
#include "src/kernels/decay_gates.hpp"

namespace weft {
namespace {

/// log of a rate in (0, 16), as Mamba-2 draws it.
double draw_a_log(double uniform) {
  return std::log(std::max(16 * uniform, 1e-4));
}

/// softplus^-1 of a step in [0.001, 0.1], uniform in its logarithm.
double draw_dt_bias(double uniform) {
  const double dt = std::exp(std::log(0.001) + uniform * (std::log(0.1) - std::log(0.001)));
  return dt + std::log(-std::expm1(-dt));
}

class DeltaGates final : public DecayGate {
 public:
  DeltaGates(const std::string& prefix, const ModelConfig& config, const Piece& heads)
      : heads_(heads.size()),
        beta_scale_(config.delta.negative_eigenvalues.value_or(false) ? 2 : 1),
        a_(prefix + "a_proj.weight", config.hidden_size, heads, fan_in_std(config.hidden_size)),
        b_(prefix + "b_proj.weight", config.hidden_size, heads, fan_in_std(config.hidden_size)),
        a_log_(drawn(prefix + "A_log", heads, draw_a_log)),
        dt_bias_(drawn(prefix + "dt_bias", heads, draw_dt_bias)) {}

  std::array<int64_t, 2> widths() const override { return {heads_, heads_}; }

  void forward(const DecayValues& values, const std::array<Tensor, 2>& activations, const Tensor& x,
               StepContext& ctx) const override {
    a_.forward(activations[0], x, ctx);
    b_.forward(activations[1], x, ctx);
    delta_gates_forward({.log_decay = values.log_decay.rows(),
                         .beta = values.beta.rows(),
                         .a = activations[0],
                         .b = activations[1],
                         .a_log = ctx.weight(a_log_),
                         .dt_bias = ctx.weight(dt_bias_),
                         .beta_scale = beta_scale_},
                        ctx.compute);
  }

  void backward(const Tensor& dx, const DecayValues& gradients, const DecayValues& values,
                const std::array<Tensor, 2>& activations, const Tensor& x,
                StepContext& ctx) const override {
    const Scope scope(ctx.scratch);
    const Tensor da = ctx.scratch.allocate("da", x.dtype, {x.dim(0), heads_});
    const Tensor db = ctx.scratch.allocate("db", x.dtype, {x.dim(0), heads_});
    delta_gates_backward({.da = da,
                          .db = db,
                          .da_log = ctx.gradient(a_log_),
                          .ddt_bias = ctx.gradient(dt_bias_),
                          .dlog_decay = gradients.log_decay.rows(),
                          .dbeta = gradients.beta.rows(),
                          .log_decay = values.log_decay.rows(),
                          .a = activations[0],
                          .b = activations[1],
                          .a_log = ctx.weight(a_log_),
                          .dt_bias = ctx.weight(dt_bias_),
                          .beta_scale = beta_scale_},
                         ctx.compute);
    a_.backward(dx, da, x, ctx, /*accumulate=*/true);
    b_.backward(dx, db, x, ctx, /*accumulate=*/true);
  }

  void visit(const std::function<void(Parameter&)>& f) override {
    f(a_.weight);
    f(b_.weight);
    f(a_log_);
    f(dt_bias_);
  }

 private:
  static Parameter drawn(std::string name, const Piece& heads, double (*draw)(double)) {
    return cut({.name = std::move(name),
                .shape = {heads.total},
                .init = Parameter::Init::drawn,
                .draw = draw},
               0, heads);
  }

  int64_t heads_;  // the rank's H
  double beta_scale_;
  Linear a_, b_;
  Parameter a_log_, dt_bias_;  // [H]
};

}  // namespace

const StateFamily kGatedDeltaFamily{
    .name = "gated_delta",
    .summary = "the gated delta rule, behind short convolutions",
    .kind = StateKind::delta,
    .expand_v = 2,
    .taps = 4,
    .silu = true,
    .unit_keys = true,
    .make_gate = [](const std::string& prefix, const ModelConfig& config, const StateLayout& layout,
                    const TensorPlace& place) -> std::unique_ptr<DecayGate> {
      return std::make_unique<DeltaGates>(prefix, config, place.piece(layout.heads));
    }};

}  // namespace weft
