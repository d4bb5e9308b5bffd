#include "models/softmax_attention.hpp"

#include <algorithm>
#include <cmath>

namespace weft {

SoftmaxAttention::SoftmaxAttention(const std::string& prefix, int layer, const ModelConfig& config,
                                   const TensorPlace& place,
                                   std::unique_ptr<AttentionParallel> strategy, int64_t window)
    : layer_(layer),
      causal_(config.causal),
      window_(window),
      heads_(attention_heads(config, place)),
      head_dim_(config.head_dim),
      q_(prefix + "q_proj.weight", config, heads_.query, /*rotary=*/true),
      k_(prefix + "k_proj.weight", config, heads_.key_value, /*rotary=*/true),
      v_(prefix + "v_proj.weight", config, heads_.key_value, /*rotary=*/false),
      o_(prefix + "o_proj.weight", heads_.query.times(head_dim_), config.hidden_size,
         output_std(heads_.query.total * head_dim_, config)),
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
                                       const Frame& frame, const StepContext& ctx) const {
  return {.q = q,
          .k = k,
          .v = v,
          .key_begin = key_begin(frame),
          .key_end = frame.peek("key end"),
          .cuts = frame.cuts(),
          .scale = 1.0 / std::sqrt(static_cast<double>(head_dim_)),
          .causal = causal_,
          .window = window_,
          .one_document = frame.one_document(),
          .deterministic = ctx.deterministic,
          .layer = layer_,
          .micro_batch = frame.micro_batch(),
          .all_key_begin = frame.find("all key begin"),
          .all_key_end = frame.find("all key end")};
}

void SoftmaxAttention::forward(const Tensor& y, const Tensor& x, Frame& frame, StepContext& ctx) {
  const int64_t B = frame.batch(), T = frame.tokens();
  const int64_t H = heads_.query.size(), G = heads_.key_value.size();
  const DType wide = accumulator_of(x.dtype);
  const Tensor q = frame.push("q", x.dtype, {B, T, H, head_dim_});
  const Tensor k = frame.push("k", x.dtype, {B, T, G, head_dim_});
  const Tensor v = frame.push("v", x.dtype, {B, T, G, head_dim_});
  const Tensor out = frame.push("out", wide, {B, T, H, head_dim_}, Recompute::attention_output);
  const Tensor lse = frame.push("lse", wide, {B, H, T}, Recompute::attention_output);
  q_.forward(q, x, frame, ctx);
  k_.forward(k, x, frame, ctx);
  v_.forward(v, x, frame, ctx);
  if (!frame.present("lse")) strategy_->forward(shard(q, k, v, frame, ctx), out, lse, ctx);
  ctx.observe(frame, layer_, "q", q, place_of(heads_.query, head_dim_));
  if (heads_.key_value.copy == 0) {  // the gradients of the copies add up, the values do not
    ctx.observe(frame, layer_, "k", k, place_of(heads_.key_value, head_dim_));
    ctx.observe(frame, layer_, "v", v, place_of(heads_.key_value, head_dim_));
  }
  ctx.observe(frame, layer_, "out", out, place_of(heads_.query, head_dim_));
  o_.forward(y, flat_heads(out), ctx);
}

void SoftmaxAttention::backward(const Tensor& dx, const Tensor& dy, const Arriving& input,
                                Frame& frame, StepContext& ctx) {
  const int64_t B = frame.batch(), T = frame.tokens();
  const int64_t H = heads_.query.size(), G = heads_.key_value.size();
  const Tensor lse = frame.pop("lse"), out = frame.pop("out");
  const Tensor v = frame.pop("v"), k = frame.pop("k"), q = frame.pop("q");
  const Scope scope(ctx.scratch);
  const Tensor dout = ctx.scratch.allocate("dout", q.dtype, {B, T, H, head_dim_});
  const AttentionGradients d{.dq = ctx.scratch.allocate("dq", out.dtype, {B, T, H, head_dim_}),
                             .dk = ctx.scratch.allocate("dk", out.dtype, {B, T, G, head_dim_}),
                             .dv = ctx.scratch.allocate("dv", out.dtype, {B, T, G, head_dim_})};
  o_.backward(flat_heads(dout), dy, flat_heads(out), ctx);
  strategy_->backward(shard(q, k, v, frame, ctx), out, lse, dout, d, ctx);
  ctx.observe(frame, layer_, "dout", dout, place_of(heads_.query, head_dim_));
  ctx.observe(frame, layer_, "dq", d.dq, place_of(heads_.query, head_dim_));
  ctx.observe(frame, layer_, "dk", d.dk, place_of(heads_.key_value, head_dim_));
  ctx.observe(frame, layer_, "dv", d.dv, place_of(heads_.key_value, head_dim_));
  const Tensor& x = input.await(ctx.compute);
  q_.backward(dx, d.dq, x, frame, ctx);
  k_.backward(dx, d.dk, x, frame, ctx, /*accumulate=*/true);
  v_.backward(dx, d.dv, x, frame, ctx, /*accumulate=*/true);
}

void SoftmaxAttention::visit(const std::function<void(Parameter&)>& f) {
  for (HeadProjection* heads : {&q_, &k_, &v_}) f(heads->linear.weight);
  f(o_.weight);
}

}  // namespace weft
