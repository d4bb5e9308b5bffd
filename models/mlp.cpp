#include "models/mlp.hpp"

#include "src/kernels/pointwise.hpp"

namespace weft {

Mlp::Mlp(const std::string& prefix, const ModelConfig& config, const TensorPlace& place)
    : columns_(place.piece(config.intermediate_size)),
      gate_(prefix + "gate_proj.weight", config.hidden_size, columns_,
            fan_in_std(config.hidden_size)),
      up_(prefix + "up_proj.weight", config.hidden_size, columns_, fan_in_std(config.hidden_size)),
      down_(prefix + "down_proj.weight", columns_, config.hidden_size,
            output_std(columns_.total, config)) {}

void Mlp::forward(const Tensor& y, const Tensor& x, Frame& frame, StepContext& ctx) {
  const Tensor gate = frame.push("gate", x.dtype, {x.dim(0), columns_.size()});
  const Tensor up = frame.push("up", x.dtype, {x.dim(0), columns_.size()});
  gate_.forward(gate, x, ctx);
  up_.forward(up, x, ctx);
  if (!y) return;
  const Scope scope(ctx.scratch);
  const Tensor activation =
      ctx.scratch.allocate("activation", x.dtype, {x.dim(0), columns_.size()});
  swiglu_forward({.y = activation, .gate = gate, .up = up}, ctx.compute);
  down_.forward(y, activation, ctx);
}

void Mlp::backward(const Tensor& dx, const Tensor& dy, const Arriving& x, Frame& frame,
                   StepContext& ctx) {
  const Tensor up = frame.pop("up");
  const Tensor gate = frame.pop("gate");
  const Scope scope(ctx.scratch);
  // The widest tensors of a layer: each gradient takes the place of what it is of.
  const Tensor activation =
      ctx.scratch.allocate("activation", gate.dtype, {gate.dim(0), gate.dim(1)});
  down_.backward_input(activation, dy, ctx);
  swiglu_backward(
      {.dgate = gate, .dup = up, .y = activation, .dy = activation, .gate = gate, .up = up},
      ctx.compute);
  down_.backward_weight(dy, activation, ctx);
  gate_.backward(dx, gate, x.await(ctx.compute), ctx);
  up_.backward(dx, up, x.tensor, ctx, /*accumulate=*/true);
}

void Mlp::visit(const std::function<void(Parameter&)>& f) {
  for (Linear* linear : {&gate_, &up_, &down_}) f(linear->weight);
}

}  // namespace weft
