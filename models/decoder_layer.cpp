#include "models/decoder_layer.hpp"

#include <utility>

#include "src/kernels/pointwise.hpp"

namespace weft {

DecoderLayer::DecoderLayer(int layer, const ModelConfig& config, const LayerStrategy& strategy)
    : layer_(layer),
      mixer_norm_(layer_prefix(layer) + "input_layernorm.weight", config.hidden_size,
                  config.rms_norm_eps),
      mixer_(mixer_kind(config.mixer_of(layer)).make(layer, config, strategy)),
      mlp_norm_(layer_prefix(layer) + "post_attention_layernorm.weight", config.hidden_size,
                config.rms_norm_eps),
      mlp_(layer_prefix(layer) + "mlp.", config) {}

Tensor DecoderLayer::forward(const Tensor& x, Frame& frame, StepContext& ctx) {
  frame.open_layer(ctx.scratch);
  const Tensor y = compute(x, frame, ctx);
  frame.close_layer();
  return y;
}

Tensor DecoderLayer::compute(const Tensor& x, Frame& frame, StepContext& ctx) {
  const Tensor mid = frame.push("mid", x.dtype, {x.dim(0), x.dim(1)});
  add_branch(mixer_norm_, *mixer_, mid, x, frame, ctx);
  ctx.observe(frame, layer_, "mixer", mid);
  const Tensor y = frame.push("stream", x.dtype, {x.dim(0), x.dim(1)}, Recompute::layer);
  add_branch(mlp_norm_, mlp_, frame.present("stream") ? Tensor{} : y, mid, frame, ctx);
  ctx.observe(frame, layer_, "mlp", y);
  return y;
}

void DecoderLayer::backward(const Tensor& d, Frame& frame, StepContext& ctx) {
  if (frame.reopen_layer(ctx.scratch)) {
    Probe probe = std::exchange(ctx.probe, {});  // it has seen all this
    compute(frame.peek("stream"), frame, ctx);
    ctx.probe = std::move(probe);
  }
  ctx.observe(frame, layer_, "dmlp", d);
  add_branch_gradient(mlp_norm_, mlp_, d, frame.peek("mid"), frame, ctx);
  frame.pop("stream");
  frame.release_popped();
  ctx.observe(frame, layer_, "dmixer", d);
  add_branch_gradient(mixer_norm_, *mixer_, d, frame.peek("stream"), frame, ctx);
  frame.pop("mid");
  frame.close_layer();
}

void DecoderLayer::add_branch(const RmsNorm& norm, Layer& branch, const Tensor& y, const Tensor& x,
                              Frame& frame, StepContext& ctx) const {
  const Tensor normed = frame.push("normed", x.dtype, {x.dim(0), x.dim(1)});
  norm.forward(normed, x, frame, ctx);
  branch.forward(y, normed, frame, ctx);
  if (y) add({.y = y, .a = y, .b = x}, ctx.compute);
}

void DecoderLayer::add_branch_gradient(const RmsNorm& norm, Layer& branch, const Tensor& d,
                                       const Tensor& x, Frame& frame, StepContext& ctx) const {
  const Scope scope(ctx.scratch);
  const Tensor dnormed = ctx.scratch.allocate("dnormed", x.dtype, {x.dim(0), x.dim(1)});
  branch.backward(dnormed, d, frame.peek("normed"), frame, ctx);
  norm.backward(d, dnormed, x, frame, ctx);
  frame.pop("normed");
}

void DecoderLayer::visit(const std::function<void(Parameter&)>& f) {
  f(mixer_norm_.weight);
  mixer_->visit(f);
  f(mlp_norm_.weight);
  mlp_.visit(f);
}

}  // namespace weft
