// Gated linear attention (Yang et al., arXiv 2312.06635): one decay a head, token and row of the
// state, from a low-rank projection:
//   log alpha = log sigmoid(W1 W0 x + bias) / 16
// Keys are half as wide as the model.
#include "models/linear.hpp"
#include "models/state_family.hpp"
#include "src/kernels/decay_gates.hpp"

namespace weft {
namespace {

class LowRankDecay final : public DecayGate {
 public:
  LowRankDecay(const std::string& prefix, const ModelConfig& config, const StateLayout& layout)
      : normalizer_(config.linear.gate_normalizer.value_or(16)),
        rank_(config.linear.gate_rank.value_or(16)),
        width_(layout.heads * layout.key_dim),
        down_(prefix + "gk_proj.0.weight", config.hidden_size, rank_,
              fan_in_std(config.hidden_size)),
        up_(prefix + "gk_proj.1.weight", rank_, width_, fan_in_std(rank_)),
        bias_{
            .name = prefix + "gk_proj.1.bias", .shape = {width_}, .init = Parameter::Init::zeros} {}

  std::array<int64_t, 2> widths() const override { return {rank_, width_}; }

  void forward(const DecayValues& values, const std::array<Tensor, 2>& activations, const Tensor& x,
               StepContext& ctx) const override {
    down_.forward(activations[0], x, ctx);
    up_.forward(activations[1], activations[0], ctx);
    sigmoid_decay_forward({.log_decay = by_token(values.log_decay),
                           .x = activations[1],
                           .bias = ctx.weight(bias_),
                           .normalizer = normalizer_},
                          ctx.compute);
  }

  void backward(const Tensor& dx, const DecayValues& gradients, const DecayValues&,
                const std::array<Tensor, 2>& activations, const Tensor& x,
                StepContext& ctx) const override {
    const Scope scope(ctx.scratch);
    const Tensor d = ctx.scratch.allocate("dgate", x.dtype, {x.dim(0), width_});
    const Tensor dlow = ctx.scratch.allocate("dgate low rank", x.dtype, {x.dim(0), rank_});
    sigmoid_decay_backward({.dx = d,
                            .dbias = ctx.gradient(bias_),
                            .dlog_decay = by_token(gradients.log_decay),
                            .x = activations[1],
                            .bias = ctx.weight(bias_),
                            .normalizer = normalizer_},
                           ctx.compute);
    up_.backward(dlow, d, activations[0], ctx);
    down_.backward(dx, dlow, x, ctx, /*accumulate=*/true);
  }

  void visit(const std::function<void(Parameter&)>& f) override {
    f(down_.weight);
    f(up_.weight);
    f(bias_);
  }

 private:
  /// [B, T, H, K] as [R, H K].
  Tensor by_token(const Tensor& t) const { return t.reshape({t.dim(0) * t.dim(1), width_}); }

  double normalizer_;
  int64_t rank_, width_;
  Linear down_, up_;
  Parameter bias_;  // [H K]
};

}  // namespace

const StateFamily kGlaFamily{
    .name = "gla",
    .summary = "one decay a head, token and row of the state",
    .kind = StateKind::vector,
    .expand_k = 0.5,
    .make_gate = [](const std::string& prefix, const ModelConfig& config,
                    const StateLayout& layout) -> std::unique_ptr<DecayGate> {
      return std::make_unique<LowRankDecay>(prefix, config, layout);
    }};

}  // namespace weft
