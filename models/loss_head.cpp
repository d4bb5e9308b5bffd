#include "models/loss_head.hpp"

#include <algorithm>

#include "src/kernels/loss.hpp"
#include "src/kernels/pointwise.hpp"

namespace weft {

LossHead::LossHead(const ModelConfig& config, int64_t slice, Parameter* tied)
    : vocab_(config.vocab_size),
      slice_(slice),
      norm_("model.norm.weight", config.hidden_size, config.rms_norm_eps),
      tied_(tied) {
  if (!tied_) {
    own_ = std::make_unique<Linear>("lm_head.weight", config.hidden_size, config.vocab_size,
                                    fan_in_std(config.hidden_size));
  }
}

void LossHead::forward(const Tensor& x, Frame& frame, StepContext& ctx) {
  const int64_t rows = x.dim(0), width = x.dim(1);
  const Tensor labels = frame.peek("labels").reshape({rows});
  const Tensor dnormed = frame.push("dnormed", x.dtype, {rows, width});
  const Tensor normed = frame.push("normed", x.dtype, {rows, width});
  norm_.forward(normed, x, frame, ctx);
  for (int64_t begin = 0; begin < rows; begin += slice_) {
    const int64_t end = std::min(begin + slice_, rows);
    slice_forward(begin, normed.slice(0, begin, end), dnormed.slice(0, begin, end),
                  labels.slice(0, begin, end), frame, ctx);
  }
}

void LossHead::slice_forward(int64_t row, const Tensor& normed, const Tensor& dnormed,
                             const Tensor& labels, const Frame& frame, StepContext& ctx) const {
  const Scope scope(ctx.scratch);
  const Tensor logits = ctx.scratch.allocate("logits", normed.dtype, {normed.dim(0), vocab_});
  matmul({.c = logits, .a = normed, .b = ctx.weight(weight()), .transpose_b = true}, ctx.compute);
  ctx.observe(frame, "logits", logits, {.row = row});
  const Tensor statistics = ctx.scratch.allocate("row statistics", accumulator_of(logits.dtype),
                                                 {1, kRowStatistics, logits.dim(0)});
  cross_entropy_shard({.statistics = statistics.reshape({kRowStatistics, logits.dim(0)}),
                       .logits = logits,
                       .labels = labels,
                       .vocab = vocab_,
                       .scale = ctx.loss_scale,
                       .gradient = ctx.training},
                      ctx.compute);
  cross_entropy_combine({.loss_sum = ctx.loss_sum,
                         .logits = logits,
                         .statistics = statistics,
                         .labels = labels,
                         .scale = ctx.loss_scale,
                         .gradient = ctx.training},
                        ctx.compute);
  if (!ctx.training) return;
  const Tensor& dlogits = logits;
  matmul({.c = dnormed, .a = dlogits, .b = ctx.weight(weight())}, ctx.compute);
  ctx.weight_gradient({.c = ctx.gradient(weight()),
                       .a = dlogits,
                       .b = normed,
                       .transpose_a = true,
                       .accumulate = true});
}

void LossHead::backward(const Tensor& d, const Tensor& x, Frame& frame, StepContext& ctx) {
  fill({.y = d, .value = 0}, ctx.compute);
  norm_.backward(d, frame.peek("dnormed"), x, frame, ctx);
  frame.pop("normed");
  frame.pop("dnormed");
}

void LossHead::visit(const std::function<void(Parameter&)>& f) {
  f(norm_.weight);
  if (own_) f(own_->weight);
}

}  // namespace weft
