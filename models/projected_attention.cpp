#include "models/projected_attention.hpp"

#include <cmath>

namespace weft {
namespace {

/// The columns of this rank's tokens.
Tensor columns(const Tensor& projection, const Frame& frame) {
  return projection.slice(1, frame.first_token(), frame.first_token() + frame.tokens());
}

/// Shared by the heads, so that every rank of the tensor axis has it.
Parameter projection(std::string name, const ModelConfig& config, const TensorPlace& place) {
  return cut({.name = std::move(name),
              .shape = {config.projected_keys, config.seq_length},
              .init_std = fan_in_std(config.seq_length)},
             0, place.whole(config.projected_keys));
}

}  // namespace

ProjectedAttention::ProjectedAttention(const std::string& prefix, int layer,
                                       const ModelConfig& config, const TensorPlace& place)
    : layer_(layer),
      heads_(attention_heads(config, place)),
      head_dim_(config.head_dim),
      q_(prefix + "q_proj.weight", config, heads_.query, /*rotary=*/true),
      k_(prefix + "k_proj.weight", config, heads_.key_value, /*rotary=*/true),
      v_(prefix + "v_proj.weight", config, heads_.key_value, /*rotary=*/false),
      o_(prefix + "o_proj.weight", heads_.query.times(head_dim_), config.hidden_size,
         output_std(heads_.query.total * head_dim_, config)),
      k_projection_(projection(prefix + "k_projection.weight", config, place)),
      v_projection_(projection(prefix + "v_projection.weight", config, place)) {
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
                        .deterministic = ctx.deterministic,
                        .layer = layer_,
                        .micro_batch = frame.micro_batch()},
          .e = columns(ctx.weight(k_projection_), frame),
          .f = columns(ctx.weight(v_projection_), frame)};
}

void ProjectedAttention::forward(const Tensor& y, const Tensor& x, Frame& frame, StepContext& ctx) {
  const int64_t B = frame.batch(), T = frame.tokens();
  const int64_t H = heads_.query.size(), G = heads_.key_value.size();
  const DType wide = accumulator_of(x.dtype);
  const Tensor q = frame.push("q", x.dtype, {B, T, H, head_dim_});
  const Tensor k = frame.push("k", x.dtype, {B, T, G, head_dim_});
  const Tensor v = frame.push("v", x.dtype, {B, T, G, head_dim_});
  const Tensor projected = frame.push(
      "projected", wide, {2, B, k_projection_.shape[0], G, head_dim_}, Recompute::attention_output);
  const Tensor out = frame.push("out", wide, {B, T, H, head_dim_}, Recompute::attention_output);
  const Tensor lse = frame.push("lse", wide, {B, H, T}, Recompute::attention_output);
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
  ctx.observe(frame, layer_, "q", q, place_of(heads_.query, head_dim_));
  if (heads_.key_value.copy == 0) {  // the gradients of the copies add up, the values do not
    ctx.observe(frame, layer_, "k", k, place_of(heads_.key_value, head_dim_));
    ctx.observe(frame, layer_, "v", v, place_of(heads_.key_value, head_dim_));
  }
  ctx.observe(frame, layer_, "out", out, place_of(heads_.query, head_dim_));
  o_.forward(y, flat_heads(out), ctx);
}

void ProjectedAttention::backward(const Tensor& dx, const Tensor& dy, const Arriving& input,
                                  Frame& frame, StepContext& ctx) {
  const int64_t B = frame.batch(), T = frame.tokens();
  const int64_t H = heads_.query.size(), G = heads_.key_value.size();
  const Tensor lse = frame.pop("lse"), out = frame.pop("out");
  const Tensor projected = frame.pop("projected");
  const Tensor v = frame.pop("v"), k = frame.pop("k"), q = frame.pop("q");
  const ProjectedShard own = shard(q, k, v, frame, ctx);
  const Scope scope(ctx.scratch);
  const Tensor dout = ctx.scratch.allocate("dout", q.dtype, {B, T, H, head_dim_});
  const Tensor dq = ctx.scratch.allocate("dq", out.dtype, {B, T, H, head_dim_});
  const Tensor dk = ctx.scratch.allocate("dk", out.dtype, {B, T, G, head_dim_});
  const Tensor dv = ctx.scratch.allocate("dv", out.dtype, {B, T, G, head_dim_});
  const Tensor dprojected = ctx.scratch.allocate("dprojected", projected.dtype,
                                                 {2, B, k_projection_.shape[0], G, head_dim_});
  o_.backward(flat_heads(dout), dy, flat_heads(out), ctx);
  const Event summed =
      attend_projected_backward(own, projected, out, lse, dout, dq, dprojected, ctx);
  ctx.observe(frame, layer_, "dout", dout, place_of(heads_.query, head_dim_));
  ctx.observe(frame, layer_, "dq", dq, place_of(heads_.query, head_dim_));
  const Tensor& x = input.await(ctx.compute);
  q_.backward(dx, dq, x, frame, ctx);
  ctx.compute.wait(summed);
  project_backward(own, dprojected, dk, dv, columns(ctx.gradient(k_projection_), frame),
                   columns(ctx.gradient(v_projection_), frame), ctx);
  ctx.observe(frame, layer_, "dk", dk, place_of(heads_.key_value, head_dim_));
  ctx.observe(frame, layer_, "dv", dv, place_of(heads_.key_value, head_dim_));
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
