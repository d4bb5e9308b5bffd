#include "models/rms_norm.hpp"

#include "src/kernels/pointwise.hpp"

namespace weft {

RmsNorm::RmsNorm(std::string name, int64_t width, double eps, const TensorPlace& place)
    : weight(cut({.name = std::move(name), .shape = {width}, .init = Parameter::Init::ones}, 0,
                 place.whole(width))),
      eps_(eps) {}

void RmsNorm::forward(const Tensor& y, const Tensor& x, Frame& frame, StepContext& ctx) const {
  const Tensor rstd = frame.push("rstd", accumulator_of(x.dtype), {x.dim(0)});
  rmsnorm_forward({.y = y, .rstd = rstd, .x = x, .weight = ctx.weight(weight), .eps = eps_},
                  ctx.compute);
}

void RmsNorm::backward(const Tensor& dx, const Tensor& dy, const Tensor& x, Frame& frame,
                       StepContext& ctx) const {
  const Tensor rstd = frame.pop("rstd");
  rmsnorm_backward({.dx = dx,
                    .dweight = ctx.gradient(weight),
                    .dy = dy,
                    .x = x,
                    .rstd = rstd,
                    .weight = ctx.weight(weight)},
                   ctx.compute);
}

}  // namespace weft
