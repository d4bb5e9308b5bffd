#include "models/projected_attention.hpp"

#include <cmath>

#include "src/kernels/rope.hpp"

namespace weft {
namespace {

/// The columns of this rank's tokens.
Tensor columns(const Tensor& projection, const Frame& frame) {
  return projection.slice(1, frame.first_token(), frame.first_token() + frame.tokens());
}

Parameter projection(std::string name, const ModelConfig& config) {
  return {.name = std::move(name),
          .shape = {config.projected_keys, config.seq_length},
          .init_std = fan_in_std(config.seq_length)};
}

}  // namespace

ProjectedAttention::ProjectedAttention(const std::string& prefix, int layer,
                                       const ModelConfig& config)
    : layer_(layer),
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
      k_projection_(projection(prefix + "k_projection.weight", config)),
      v_projection_(projection(prefix + "v_projection.weight", config)) {
  WEFT_CHECK(!config.causal && config.projected_keys > 0 && config.seq_length > 0,
             config.projected_keys, " rows of ", config.seq_length, " tokens");
}

ProjectedShard ProjectedAttention::shard(const Tensor& q, const Tensor& k, const Tensor& v,
                                         const Frame& frame, const StepContext& ctx) const {
  WEFT_CHECK(frame.cuts().total() == k_projection_.shape[1], frame.cuts().total(),
             " tokens for projections of ", k_projection_.shape[1]);
  return {.attention = {.q = q,
                        .k = k,
                        .v = v,
                        .key_begin = frame.peek("key begin"),
                        .key_end = frame.peek("key end"),
                        .cuts = frame.cuts(),
                        .scale = 1.0 / std::sqrt(static_cast<double>(head_dim_)),
                        .causal = false,
                        .layer = layer_,
                        .micro_batch = frame.micro_batch()},
          .e = columns(ctx.weight(k_projection_), frame),
          .f = columns(ctx.weight(v_projection_), frame)};
}

void ProjectedAttention::rotate(const Tensor& heads, bool inverse, const Frame& frame,
                                StepContext& ctx) const {
  rope({.x = heads, .cos = frame.peek("cos"), .sin = frame.peek("sin"), .inverse = inverse},
       ctx.compute);
}

void ProjectedAttention::observe(const char* name, const Tensor& value,
                                 const StepContext& ctx) const {
  if (ctx.probe) ctx.probe(concat("layers.", layer_, ".", name), value);
}

void ProjectedAttention::forward(const Tensor& y, const Tensor& x, Frame& frame, StepContext& ctx) {
  const int64_t B = frame.batch(), T = frame.tokens();
  const DType wide = accumulator_of(x.dtype);
  const Tensor q = frame.push("q", x.dtype, {B, T, heads_, head_dim_});
  const Tensor k = frame.push("k", x.dtype, {B, T, kv_heads_, head_dim_});
  const Tensor v = frame.push("v", x.dtype, {B, T, kv_heads_, head_dim_});
  const Tensor projected =
      frame.push("projected", wide, {2, B, k_projection_.shape[0], kv_heads_, head_dim_},
                 Recompute::attention_output);
  const Tensor out =
      frame.push("out", wide, {B, T, heads_, head_dim_}, Recompute::attention_output);
  const Tensor lse = frame.push("lse", wide, {B, heads_, T}, Recompute::attention_output);
  k_.forward(k.reshape({B * T, kv_heads_ * head_dim_}), x, ctx);
  v_.forward(v.reshape({B * T, kv_heads_ * head_dim_}), x, ctx);
  rotate(k, false, frame, ctx);
  const ProjectedShard own = shard(q, k, v, frame, ctx);
  const bool attends = !frame.present("lse");
  {
    const Scope scope(ctx.scratch);
    const Event summed = attends ? project(own, projected, ctx) : Event{};
    q_.forward(q.reshape({B * T, heads_ * head_dim_}), x, ctx);
    rotate(q, false, frame, ctx);
    ctx.compute.wait(summed);
  }
  if (attends) attend_projected(own, projected, out, lse, ctx);
  observe("q", q, ctx);
  observe("k", k, ctx);
  observe("v", v, ctx);
  observe("out", out, ctx);
  o_.forward(y, out.reshape({B * T, heads_ * head_dim_}), ctx);
}

void ProjectedAttention::backward(const Tensor& dx, const Tensor& dy, const Tensor& x, Frame& frame,
                                  StepContext& ctx) {
  const int64_t B = frame.batch(), T = frame.tokens();
  const Tensor lse = frame.pop("lse"), out = frame.pop("out");
  const Tensor projected = frame.pop("projected");
  const Tensor v = frame.pop("v"), k = frame.pop("k"), q = frame.pop("q");
  const ProjectedShard own = shard(q, k, v, frame, ctx);
  const Scope scope(ctx.scratch);
  const Tensor dout = ctx.scratch.allocate("dout", x.dtype, {B, T, heads_, head_dim_});
  const Tensor dq = ctx.scratch.allocate("dq", out.dtype, {B, T, heads_, head_dim_});
  const Tensor dk = ctx.scratch.allocate("dk", out.dtype, {B, T, kv_heads_, head_dim_});
  const Tensor dv = ctx.scratch.allocate("dv", out.dtype, {B, T, kv_heads_, head_dim_});
  const Tensor dprojected = ctx.scratch.allocate(
      "dprojected", projected.dtype, {2, B, k_projection_.shape[0], kv_heads_, head_dim_});
  o_.backward(dout.reshape({B * T, heads_ * head_dim_}), dy,
              out.reshape({B * T, heads_ * head_dim_}), ctx);
  const Event summed =
      attend_projected_backward(own, projected, out, lse, dout, dq, dprojected, ctx);
  observe("dout", dout, ctx);
  observe("dq", dq, ctx);
  rotate(dq, true, frame, ctx);
  q_.backward(dx, dq.reshape({B * T, heads_ * head_dim_}), x, ctx);
  ctx.compute.wait(summed);
  project_backward(own, dprojected, dk, dv, columns(ctx.gradient(k_projection_), frame),
                   columns(ctx.gradient(v_projection_), frame), ctx);
  observe("dk", dk, ctx);
  observe("dv", dv, ctx);
  rotate(dk, true, frame, ctx);
  k_.backward(dx, dk.reshape({B * T, kv_heads_ * head_dim_}), x, ctx, /*accumulate=*/true);
  v_.backward(dx, dv.reshape({B * T, kv_heads_ * head_dim_}), x, ctx, /*accumulate=*/true);
}

void ProjectedAttention::visit(const std::function<void(Parameter&)>& f) {
  for (Linear* linear : {&q_, &k_, &v_, &o_}) f(linear->weight);
  f(k_projection_);
  f(v_projection_);
}

}  // namespace weft
