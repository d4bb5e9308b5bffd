#include "models/softmax_attention.hpp"

#include <algorithm>
#include <cmath>

#include "src/kernels/rope.hpp"

namespace weft {

SoftmaxAttention::SoftmaxAttention(const std::string& prefix, int layer, const ModelConfig& config,
                                   std::unique_ptr<AttentionParallel> strategy, int64_t window)
    : layer_(layer),
      causal_(config.causal),
      window_(window),
      heads_(config.num_attention_heads),
      kv_heads_(config.num_key_value_heads),
      head_dim_(config.head_dim),
      q_(prefix + "q_proj.weight", config.hidden_size, heads_ * head_dim_,
         fan_in_std(config.hidden_size)),
      k_(prefix + "k_proj.weight", config.hidden_size, kv_heads_ * head_dim_,
         fan_in_std(config.hidden_size)),
      v_(prefix + "v_proj.weight", config.hidden_size, kv_heads_ * head_dim_,
         fan_in_std(config.hidden_size)),
      o_(prefix + "o_proj.weight", heads_ * head_dim_, config.hidden_size,
         output_std(heads_ * head_dim_, config)),
      strategy_(std::move(strategy)) {
  const std::vector<int64_t> windows = config.distinct_windows();
  if (window > 0) {
    window_index_ = std::find(windows.begin(), windows.end(), window) - windows.begin();
  }
}

Tensor SoftmaxAttention::key_begin(const Frame& frame) const {
  if (window_ == 0) return frame.peek("key begin");
  return frame.peek("window begin")
      .slice(0, window_index_, window_index_ + 1)
      .reshape({frame.batch(), frame.tokens()});
}

AttentionShard SoftmaxAttention::shard(const Tensor& q, const Tensor& k, const Tensor& v,
                                       const Frame& frame) const {
  return {.q = q,
          .k = k,
          .v = v,
          .key_begin = key_begin(frame),
          .key_end = frame.peek("key end"),
          .cuts = frame.cuts(),
          .scale = 1.0 / std::sqrt(static_cast<double>(head_dim_)),
          .causal = causal_,
          .window = window_,
          .layer = layer_,
          .micro_batch = frame.micro_batch(),
          .all_key_begin = frame.find("all key begin"),
          .all_key_end = frame.find("all key end")};
}

void SoftmaxAttention::rotate(const Tensor& heads, bool inverse, const Frame& frame,
                              StepContext& ctx) const {
  rope({.x = heads, .cos = frame.peek("cos"), .sin = frame.peek("sin"), .inverse = inverse},
       ctx.compute);
}

void SoftmaxAttention::observe(const char* name, const Tensor& value,
                               const StepContext& ctx) const {
  if (ctx.probe) ctx.probe(concat("layers.", layer_, ".", name), value);
}

void SoftmaxAttention::forward(const Tensor& y, const Tensor& x, Frame& frame, StepContext& ctx) {
  const int64_t B = frame.batch(), T = frame.tokens();
  const DType wide = accumulator_of(x.dtype);
  const Tensor q = frame.push("q", x.dtype, {B, T, heads_, head_dim_});
  const Tensor k = frame.push("k", x.dtype, {B, T, kv_heads_, head_dim_});
  const Tensor v = frame.push("v", x.dtype, {B, T, kv_heads_, head_dim_});
  const Tensor out =
      frame.push("out", wide, {B, T, heads_, head_dim_}, Recompute::attention_output);
  const Tensor lse = frame.push("lse", wide, {B, heads_, T}, Recompute::attention_output);
  q_.forward(q.reshape({B * T, heads_ * head_dim_}), x, ctx);
  k_.forward(k.reshape({B * T, kv_heads_ * head_dim_}), x, ctx);
  v_.forward(v.reshape({B * T, kv_heads_ * head_dim_}), x, ctx);
  rotate(q, false, frame, ctx);
  rotate(k, false, frame, ctx);
  if (!frame.present("lse")) strategy_->forward(shard(q, k, v, frame), out, lse, ctx);
  observe("q", q, ctx);
  observe("k", k, ctx);
  observe("v", v, ctx);
  observe("out", out, ctx);
  o_.forward(y, out.reshape({B * T, heads_ * head_dim_}), ctx);
}

void SoftmaxAttention::backward(const Tensor& dx, const Tensor& dy, const Tensor& x, Frame& frame,
                                StepContext& ctx) {
  const int64_t B = frame.batch(), T = frame.tokens();
  const Tensor lse = frame.pop("lse"), out = frame.pop("out");
  const Tensor v = frame.pop("v"), k = frame.pop("k"), q = frame.pop("q");
  const Scope scope(ctx.scratch);
  const Tensor dout = ctx.scratch.allocate("dout", x.dtype, {B, T, heads_, head_dim_});
  const AttentionGradients d{
      .dq = ctx.scratch.allocate("dq", out.dtype, {B, T, heads_, head_dim_}),
      .dk = ctx.scratch.allocate("dk", out.dtype, {B, T, kv_heads_, head_dim_}),
      .dv = ctx.scratch.allocate("dv", out.dtype, {B, T, kv_heads_, head_dim_})};
  o_.backward(dout.reshape({B * T, heads_ * head_dim_}), dy,
              out.reshape({B * T, heads_ * head_dim_}), ctx);
  strategy_->backward(shard(q, k, v, frame), out, lse, dout, d, ctx);
  observe("dout", dout, ctx);
  observe("dq", d.dq, ctx);
  observe("dk", d.dk, ctx);
  observe("dv", d.dv, ctx);
  rotate(d.dq, true, frame, ctx);
  rotate(d.dk, true, frame, ctx);
  q_.backward(dx, d.dq.reshape({B * T, heads_ * head_dim_}), x, ctx);
  k_.backward(dx, d.dk.reshape({B * T, kv_heads_ * head_dim_}), x, ctx, /*accumulate=*/true);
  v_.backward(dx, d.dv.reshape({B * T, kv_heads_ * head_dim_}), x, ctx, /*accumulate=*/true);
}

void SoftmaxAttention::visit(const std::function<void(Parameter&)>& f) {
  for (Linear* linear : {&q_, &k_, &v_, &o_}) f(linear->weight);
}

}  // namespace weft
