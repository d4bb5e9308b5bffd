#include "models/decoder_layer.hpp"

#include <utility>

#include "src/core/cuda/range.hpp"
#include "src/kernels/pointwise.hpp"

namespace weft {

DecoderLayer::DecoderLayer(int layer, const ModelConfig& config, const LayerStrategy& strategy)
    : layer_(layer),
      mixer_norm_(layer_prefix(layer) + "input_layernorm.weight", config.hidden_size,
                  config.rms_norm_eps, strategy.place),
      mixer_(mixer_kind(config.mixer_of(layer)).make(layer, config, strategy)),
      mlp_norm_(layer_prefix(layer) + "post_attention_layernorm.weight", config.hidden_size,
                config.rms_norm_eps, strategy.place),
      mlp_(layer_prefix(layer) + "mlp.", config, strategy.place) {}

DecoderLayer::Crossing::Crossing(int layer, const Tensor& x, const Frame& frame, StepContext& ctx)
    : rows(frame, layer, ctx),
      inputs(rows.room("branch inputs", x.dtype, x.dim(1))),
      sums(rows.room("branch sums", x.dtype, x.dim(1))) {}

Tensor DecoderLayer::forward(const Tensor& x, Frame& frame, StepContext& ctx) {
  const cuda::NamedRange range(concat("layers.", layer_, " forward"));
  const Scope scope(ctx.scratch);
  const Crossing crossing(layer_, x, frame, ctx);
  frame.open_layer(ctx.scratch);
  const Tensor y = compute(x, crossing, frame, ctx);
  frame.close_layer();
  return y;
}

Tensor DecoderLayer::compute(const Tensor& x, const Crossing& crossing, Frame& frame,
                             StepContext& ctx) {
  const RowPlace own{.row = crossing.rows.begin()};
  const Tensor mid = frame.push("mid", x.dtype, {x.dim(0), x.dim(1)});
  add_branch(mixer_norm_, *mixer_, mid, x, crossing, frame, ctx);
  ctx.observe(frame, layer_, "mixer", mid, own);
  const Tensor y = frame.push("stream", x.dtype, {x.dim(0), x.dim(1)}, Recompute::layer);
  add_branch(mlp_norm_, mlp_, frame.present("stream") ? Tensor{} : y, mid, crossing, frame, ctx);
  ctx.observe(frame, layer_, "mlp", y, own);
  return y;
}

void DecoderLayer::backward(const Tensor& d, Frame& frame, StepContext& ctx) {
  const cuda::NamedRange range(concat("layers.", layer_, " backward"));
  const Scope scope(ctx.scratch);
  const Crossing crossing(layer_, d, frame, ctx);
  const RowPlace own{.row = crossing.rows.begin()};
  const bool again = frame.reopen_layer(ctx.scratch);
  if (again) {
    Probe probe = std::exchange(ctx.probe, {});  // it has seen all this
    compute(frame.peek("stream"), crossing, frame, ctx);
    ctx.probe = std::move(probe);
  }
  ctx.observe(frame, layer_, "dmlp", d, own);
  add_branch_gradient(mlp_norm_, mlp_, d, frame.peek("mid"), again, crossing, frame, ctx);
  frame.pop("stream");
  frame.release_popped();
  ctx.observe(frame, layer_, "dmixer", d, own);
  add_branch_gradient(mixer_norm_, *mixer_, d, frame.peek("stream"), /*gathered=*/false, crossing,
                      frame, ctx);
  frame.pop("mid");
  frame.close_layer();
}

void DecoderLayer::add_branch(const RmsNorm& norm, Layer& branch, const Tensor& y, const Tensor& x,
                              const Crossing& crossing, Frame& frame, StepContext& ctx) const {
  const auto& [rows, inputs, sums] = crossing;
  const Tensor normed = frame.push("normed", x.dtype, {x.dim(0), x.dim(1)});
  norm.forward(normed, x, frame, ctx);
  const Tensor all = rows.gather(normed, inputs, Tag::Pass::forward);
  const Tensor partial = y && sums ? sums : y;
  branch.forward(partial, all, frame, ctx);
  if (y) add({.y = y, .a = rows.sum(partial, Tag::Pass::forward), .b = x}, ctx.compute);
}

void DecoderLayer::add_branch_gradient(const RmsNorm& norm, Layer& branch, const Tensor& d,
                                       const Tensor& x, bool gathered, const Crossing& crossing,
                                       Frame& frame, StepContext& ctx) const {
  const auto& [rows, inputs, sums] = crossing;
  const Scope scope(ctx.scratch);
  const Tensor normed = frame.peek("normed");
  const Tensor dy =
      rows.gather(d, rows.room("branch gradient", d.dtype, d.dim(1)), Tag::Pass::backward);
  // The gradients of the weights ask for it, which come last; until then it may travel.
  const Arriving all = gathered && inputs
                           ? Arriving{inputs}
                           : rows.begin_gather(normed, inputs, Tag::Pass::backward, Lane::forward);
  const Tensor dnormed =
      sums ? sums : ctx.scratch.allocate("dnormed", x.dtype, {x.dim(0), x.dim(1)});
  branch.backward(dnormed, dy, all, frame, ctx);
  norm.backward(d, rows.sum(dnormed, Tag::Pass::backward), x, frame, ctx);
  frame.pop("normed");
}

void DecoderLayer::visit(const std::function<void(Parameter&)>& f) {
  f(mixer_norm_.weight);
  mixer_->visit(f);
  f(mlp_norm_.weight);
  mlp_.visit(f);
}

}  // namespace weft
