#include "models/loss_head.hpp"

#include <algorithm>

#include "parallel/tensor/token_rows.hpp"
#include "src/core/cuda/range.hpp"
#include "src/kernels/loss.hpp"
#include "src/kernels/pointwise.hpp"

namespace weft {

LossHead::LossHead(const ModelConfig& config, int64_t slice, Parameter* tied,
                   const TensorPlace& place)
    : vocab_(place.piece(config.vocab_size)),
      ranks_(place.size),
      rank_(place.rank),
      slice_(slice),
      norm_("model.norm.weight", config.hidden_size, config.rms_norm_eps, place),
      tied_(tied) {
  if (!tied_) {
    own_ = std::make_unique<Linear>("lm_head.weight", config.hidden_size, vocab_,
                                    fan_in_std(config.hidden_size));
    own_->weight.hidden = false;
  }
}

void LossHead::forward(const Tensor& x, Frame& frame, StepContext& ctx) {
  const cuda::NamedRange range("head forward");
  const TokenRows rows(frame, /*layer=*/-1, ctx);
  const int64_t width = x.dim(1);
  const Tensor labels = frame.peek("labels").reshape({rows.all()});
  const Tensor dnormed = frame.push("dnormed", x.dtype, {rows.size(), width});
  const Tensor normed = frame.push("normed", x.dtype, {rows.size(), width});
  ctx.begin_forward(norm_.weight.unit);
  norm_.forward(normed, x, frame, ctx);
  ctx.end_forward(norm_.weight.unit);
  const Scope scope(ctx.scratch);
  const Tensor room = rows.room("head gradient sums", x.dtype, width);
  const Tensor sums = room ? room : dnormed;
  const Tensor all =
      rows.gather(normed, rows.room("head inputs", x.dtype, width), Tag::Pass::forward);
  ctx.begin_forward(matrix_unit());
  if (ctx.training) ctx.begin_gradients(matrix_unit());
  for (int64_t begin = 0; begin < rows.all(); begin += slice_) {
    const int64_t end = std::min(begin + slice_, rows.all());
    slice_forward(begin, all.slice(0, begin, end), sums.slice(0, begin, end),
                  labels.slice(0, begin, end), frame, ctx);
  }
  ctx.end_forward(matrix_unit());
  if (ctx.training) ctx.end_gradients(matrix_unit(), frame);
  if (ctx.training) rows.sum_into(dnormed, sums, Tag::Pass::backward);
}

Tensor LossHead::gather_statistics(const Tensor& logits, const Tensor& labels, const Frame& frame,
                                   StepContext& ctx) const {
  const int64_t rows = logits.dim(0);
  const Tensor all = ctx.scratch.allocate("row statistics", accumulator_of(logits.dtype),
                                          {ranks_, kRowStatistics, rows});
  cross_entropy_shard({.statistics = all.slice(0, rank_, rank_ + 1).reshape({kRowStatistics, rows}),
                       .logits = logits,
                       .labels = labels,
                       .vocab_begin = vocab_.begin,
                       .vocab = vocab_.total,
                       .scale = ctx.loss_scale,
                       .gradient = ctx.training},
                      ctx.compute);
  ctx.compute.wait(
      ctx.mesh.along(Axis::tensor)
          .all_gather(all.reshape({all.numel()}), Cuts::even(all.numel(), ranks_),
                      {-1, Tag::Purpose::loss, Tag::Pass::forward, frame.micro_batch()},
                      ctx.compute));
  return all;
}

void LossHead::slice_forward(int64_t row, const Tensor& normed, const Tensor& dnormed,
                             const Tensor& labels, const Frame& frame, StepContext& ctx) const {
  const Scope scope(ctx.scratch);
  const Tensor logits =
      ctx.scratch.allocate("logits", normed.dtype, {normed.dim(0), vocab_.size()});
  matmul({.c = logits, .a = normed, .b = ctx.weight(weight()), .transpose_b = true}, ctx.compute);
  ctx.observe(frame, "logits", logits,
              {.row = row, .column = vocab_.begin, .columns = vocab_.total});
  cross_entropy_combine({.loss_sum = rank_ == 0 ? ctx.loss_sum : Tensor{},
                         .logits = logits,
                         .statistics = gather_statistics(logits, labels, frame, ctx),
                         .labels = labels,
                         .rank = rank_,
                         .vocab_begin = vocab_.begin,
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
  const cuda::NamedRange range("head backward");
  fill({.y = d, .value = 0}, ctx.compute);
  ctx.begin_backward(norm_.weight.unit);
  norm_.backward(d, frame.peek("dnormed"), x, frame, ctx);
  ctx.end_backward(norm_.weight.unit, frame);
  frame.pop("normed");
  frame.pop("dnormed");
}

void LossHead::visit(const std::function<void(Parameter&)>& f) {
  f(norm_.weight);
  if (own_) f(own_->weight);
}

}  // namespace weft
