#include "models/head_projection.hpp"

#include "src/kernels/rope.hpp"

namespace weft {

Tensor flat_heads(const Tensor& heads) {
  return heads.reshape({heads.dim(0) * heads.dim(1), heads.dim(2) * heads.dim(3)});
}

RowPlace place_of(const Piece& heads, int64_t width) {
  const Piece columns = heads.times(width);
  return {.column = columns.begin, .columns = columns.total};
}

HeadProjection::HeadProjection(std::string name, const ModelConfig& config, const Piece& heads,
                               bool rotary)
    : linear(std::move(name), config.hidden_size, heads.times(config.head_dim),
             fan_in_std(config.hidden_size)),
      rotary_(rotary) {}

void HeadProjection::forward(const Tensor& heads, const Tensor& x, const Frame& frame,
                             StepContext& ctx) const {
  linear.forward(flat_heads(heads), x, ctx);
  rotate(heads, /*inverse=*/false, frame, ctx);
}

void HeadProjection::backward(const Tensor& dx, const Tensor& dheads, const Tensor& x,
                              const Frame& frame, StepContext& ctx, bool accumulate) const {
  rotate(dheads, /*inverse=*/true, frame, ctx);
  linear.backward(dx, flat_heads(dheads), x, ctx, accumulate);
}

void HeadProjection::rotate(const Tensor& heads, bool inverse, const Frame& frame,
                            StepContext& ctx) const {
  if (!rotary_) return;
  rope({.x = heads, .cos = frame.peek("cos"), .sin = frame.peek("sin"), .inverse = inverse},
       ctx.compute);
}

}  // namespace weft
