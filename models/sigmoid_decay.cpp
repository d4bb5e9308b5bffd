#include "models/sigmoid_decay.hpp"

#include "src/kernels/decay_gates.hpp"

namespace weft {

SigmoidDecay::SigmoidDecay(std::string bias_name, const Piece& channels, const ModelConfig& config)
    : bias(cut(
          {.name = std::move(bias_name), .shape = {channels.total}, .init = Parameter::Init::zeros},
          0, channels)),
      normalizer_(config.linear.gate_normalizer.value_or(16)) {}

void SigmoidDecay::forward(const Tensor& log_decay, const Tensor& x, StepContext& ctx) const {
  sigmoid_decay_forward({.log_decay = log_decay.reshape({x.dim(0), width()}),
                         .x = x,
                         .bias = ctx.weight(bias),
                         .normalizer = normalizer_},
                        ctx.compute);
}

void SigmoidDecay::backward(const Tensor& dx, const Tensor& dlog_decay, const Tensor& x,
                            StepContext& ctx) const {
  sigmoid_decay_backward({.dx = dx,
                          .dbias = ctx.gradient(bias),
                          .dlog_decay = dlog_decay.reshape({x.dim(0), width()}),
                          .x = x,
                          .bias = ctx.weight(bias),
                          .normalizer = normalizer_},
                         ctx.compute);
}

}  // namespace weft
