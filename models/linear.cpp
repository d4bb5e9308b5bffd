#include "models/linear.hpp"

#include <cmath>

#include "src/kernels/pointwise.hpp"

namespace weft {
namespace {

/// t where it is of that type, else a copy in the scratch that is.
Tensor in_type(const Tensor& t, DType dtype, StepContext& ctx) {
  if (t.dtype == dtype) return t;
  const Tensor converted = ctx.scratch.allocate("rounded", dtype, {t.dim(0), t.dim(1)});
  convert({.y = converted, .x = t}, ctx.compute);
  return converted;
}

}  // namespace

double fan_in_std(int64_t in) {
  return 1.0 / std::sqrt(static_cast<double>(in));
}

double output_std(int64_t in, const ModelConfig& config) {
  return fan_in_std(in) / std::sqrt(2.0 * static_cast<double>(config.num_hidden_layers));
}

Linear::Linear(std::string name, int64_t in, const Piece& out, double init_std)
    : weight(
          cut({.name = std::move(name), .shape = {out.total, in}, .init_std = init_std}, 0, out)) {}

Linear::Linear(std::string name, const Piece& in, int64_t out, double init_std)
    : weight(
          cut({.name = std::move(name), .shape = {out, in.total}, .init_std = init_std}, 1, in)) {}

void Linear::forward(const Tensor& y, const Tensor& x, StepContext& ctx) const {
  const Scope scope(ctx.scratch);
  const Tensor w = ctx.weight(weight);
  matmul({.c = y, .a = in_type(x, w.dtype, ctx), .b = w, .transpose_b = true}, ctx.compute);
}

void Linear::backward_input(const Tensor& dx, const Tensor& dy, StepContext& ctx,
                            bool accumulate) const {
  const Scope scope(ctx.scratch);
  const Tensor w = ctx.weight(weight);
  matmul({.c = dx, .a = in_type(dy, w.dtype, ctx), .b = w, .accumulate = accumulate}, ctx.compute);
}

void Linear::backward_weight(const Tensor& dy, const Tensor& x, StepContext& ctx) const {
  const Scope scope(ctx.scratch);
  const DType dtype = ctx.weight(weight).dtype;
  ctx.weight_gradient({.c = ctx.gradient(weight),
                       .a = in_type(dy, dtype, ctx),
                       .b = in_type(x, dtype, ctx),
                       .transpose_a = true,
                       .accumulate = true});
}

void Linear::backward(const Tensor& dx, const Tensor& dy, const Tensor& x, StepContext& ctx,
                      bool accumulate) const {
  const Scope scope(ctx.scratch);
  const Tensor rounded = in_type(dy, ctx.weight(weight).dtype, ctx);  // once for both
  backward_input(dx, rounded, ctx, accumulate);
  backward_weight(rounded, x, ctx);
}

}  // namespace weft
