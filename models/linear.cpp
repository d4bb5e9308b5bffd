#include "models/linear.hpp"

#include <cmath>

namespace weft {

double fan_in_std(int64_t in) {
  return 1.0 / std::sqrt(static_cast<double>(in));
}

double output_std(int64_t in, const ModelConfig& config) {
  return fan_in_std(in) / std::sqrt(2.0 * static_cast<double>(config.num_hidden_layers));
}

Linear::Linear(std::string name, int64_t in, int64_t out, double init_std)
    : weight{.name = std::move(name), .shape = {out, in}, .init_std = init_std} {}

void Linear::forward(const Tensor& y, const Tensor& x, StepContext& ctx) const {
  matmul({.c = y, .a = x, .b = ctx.weight(weight), .transpose_b = true}, ctx.compute);
}

void Linear::backward_input(const Tensor& dx, const Tensor& dy, StepContext& ctx,
                            bool accumulate) const {
  matmul({.c = dx, .a = dy, .b = ctx.weight(weight), .accumulate = accumulate}, ctx.compute);
}

void Linear::backward_weight(const Tensor& dy, const Tensor& x, StepContext& ctx) const {
  ctx.weight_gradient(
      {.c = ctx.gradient(weight), .a = dy, .b = x, .transpose_a = true, .accumulate = true});
}

void Linear::backward(const Tensor& dx, const Tensor& dy, const Tensor& x, StepContext& ctx,
                      bool accumulate) const {
  backward_input(dx, dy, ctx, accumulate);
  backward_weight(dy, x, ctx);
}

}  // namespace weft
