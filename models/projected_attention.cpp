#include "models/projected_attention.hpp"

#include <cmath>

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
      q_(prefix + "q_proj.weight", config, heads_, /*rotary=*/true),
      k_(prefix + "k_proj.weight", config, kv_heads_, /*rotary=*/true),
      v_(prefix + "v_proj.weight", config, kv_heads_, /*rotary=*/false),
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
                        .one_document = true,
                        .layer = layer_,
                        .micro_batch = frame.micro_batch()},
          .e = columns(ctx.weight(k_projection_), frame),
          .f = columns(ctx.weight(v_projection_), frame)};
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
  k_.forward(k, x, frame, ctx);
  v_.forward(v, x, frame, ctx);
  const ProjectedShard own = shard(q, k, v, frame, ctx);
  const bool attends = !frame.present("lse");
  {
    const Scope scope(ctx.scratch);
    const Event summed = attends ? project(own, projected, ctx) : Event{};
    q_.forward(q, x, frame, ctx);
    ctx.compute.wait(summed);
  }
  if (attends) attend_projected(own, projected, out, lse, ctx);
  ctx.observe(frame, layer_, "q", q);
  ctx.observe(frame, layer_, "k", k);
  ctx.observe(frame, layer_, "v", v);
  ctx.observe(frame, layer_, "out", out);
  o_.forward(y, flat_heads(out), ctx);
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
  o_.backward(flat_heads(dout), dy, flat_heads(out), ctx);
  const Event summed =
      attend_projected_backward(own, projected, out, lse, dout, dq, dprojected, ctx);
  ctx.observe(frame, layer_, "dout", dout);
  ctx.observe(frame, layer_, "dq", dq);
  q_.backward(dx, dq, x, frame, ctx);
  ctx.compute.wait(summed);
  project_backward(own, dprojected, dk, dv, columns(ctx.gradient(k_projection_), frame),
                   columns(ctx.gradient(v_projection_), frame), ctx);
  ctx.observe(frame, layer_, "dk", dk);
  ctx.observe(frame, layer_, "dv", dv);
  k_.backward(dx, dk, x, frame, ctx, /*accumulate=*/true);
  v_.backward(dx, dv, x, frame, ctx, /*accumulate=*/true);
}

void ProjectedAttention::visit(const std::function<void(Parameter&)>& f) {
  for (HeadProjection* heads : {&q_, &k_, &v_}) f(heads->linear.weight);
  f(o_.weight);
  f(k_projection_);
  f(v_projection_);
}

}  // namespace weft
