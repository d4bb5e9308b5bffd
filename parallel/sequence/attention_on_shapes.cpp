#include "parallel/sequence/attention_on_shapes.hpp"

#include <cmath>

namespace weft {
namespace {

Tensor shape_of(DType dtype, std::initializer_list<int64_t> dims) {
  return Tensor::view(nullptr, dtype, Device::meta, {dims.begin(), dims.size()});
}

AttentionShard shard_of(const AttentionSetting& s, int rank) {
  const int64_t B = s.batch, N = s.cuts.total(), T = s.cuts.size(rank), D = s.head_dim;
  return {.q = shape_of(s.dtype, {B, T, s.heads, D}),
          .k = shape_of(s.dtype, {B, T, s.kv_heads, D}),
          .v = shape_of(s.dtype, {B, T, s.kv_heads, D}),
          .key_begin = shape_of(DType::i64, {B, T}),
          .key_end = shape_of(DType::i64, {B, T}),
          .cuts = s.cuts,
          .scale = 1 / std::sqrt(static_cast<double>(D)),
          .causal = s.causal,
          .layer = 0,
          .micro_batch = 0,
          .all_key_begin = shape_of(DType::i64, {B, N}),
          .all_key_end = shape_of(DType::i64, {B, N})};
}

Tensor in_accumulator_type(Tensor t) {
  t.dtype = accumulator_of(t.dtype);
  return t;
}

}  // namespace

AttentionOnShapes::AttentionOnShapes(const AttentionStrategy& strategy,
                                     const AttentionSetting& setting, World& world, Stream& compute,
                                     Ledgers ledgers)
    : mesh_(world, mesh_along(Axis::sequence, world.size()), ledgers, /*strict=*/false),
      scratch_("scratch", Device::meta, 0),
      slab_("parameters", Device::meta, 0),
      no_parameters_({}, setting.dtype, slab_),
      ctx_{.mesh = mesh_,
           .compute = compute,
           .scratch = scratch_,
           .parameters = no_parameters_,
           .dtype = setting.dtype,
           .loss_sum = {}},
      shard_(shard_of(setting, world.rank())),
      out_(in_accumulator_type(shard_.q)),
      lse_(shape_of(out_.dtype, {out_.dim(0), out_.dim(2), out_.dim(1)})),
      dout_(shard_.q),
      gradients_{
          .dq = out_, .dk = in_accumulator_type(shard_.k), .dv = in_accumulator_type(shard_.v)},
      attention_(strategy.make()) {}

void AttentionOnShapes::forward() {
  attention_->forward(shard_, out_, lse_, ctx_);
}

void AttentionOnShapes::backward() {
  attention_->backward(shard_, out_, lse_, dout_, gradients_, ctx_);
}

}  // namespace weft
