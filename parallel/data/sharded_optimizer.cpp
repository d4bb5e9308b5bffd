#include "parallel/data/sharded_optimizer.hpp"

#include <algorithm>

#include "src/kernels/optimizer.hpp"
#include "src/kernels/pointwise.hpp"

namespace weft {
namespace {

Tag update_tag(Tag::Purpose purpose) {
  return {-1, purpose, Tag::Pass::update, 0};
}

}  // namespace

ShardedOptimizer::ShardedOptimizer(const AdamWConfig& config, const ParameterStore& store,
                                   ProcessMesh& mesh, Arena& arena)
    : config_(config), store_(store) {
  for (const ParameterBucket& bucket : store.buckets()) {
    Communicator& group = mesh.holders(bucket.holders);
    const Cuts cuts = Cuts::even(bucket.size(), group.size());
    const int64_t begin = bucket.begin + cuts.begin(group.rank());
    const int64_t end = bucket.begin + cuts.end(group.rank());
    shards_.push_back({&bucket, &group, cuts, begin, end, size_});
    size_ += end - begin;
  }
  const DType wide = accumulator_of(store.dtype());
  m_ = arena.allocate_zeros("adam m", wide, {size_});
  v_ = arena.allocate_zeros("adam v", wide, {size_});
  if (store.dtype() != wide) masters_ = arena.allocate("masters", wide, {size_});
}

void ShardedOptimizer::reduce(const Tensor& squared_norm, StepContext& ctx) {
  const Scope scope(ctx.scratch);
  const Tensor gradients = store_.gradients();
  const Tensor pieces = ctx.scratch.allocate("gradient pieces", gradients.dtype, {size_});
  const Tensor norm_piece = ctx.scratch.allocate("norm piece", DType::f64, {1});
  std::vector<Event> summed;
  for (const Shard& shard : shards_) {
    summed.push_back(shard.group->reduce_scatter(shard.of(gradients), shard.cuts,
                                                 pieces.slice(0, shard.at, shard.at + shard.size()),
                                                 update_tag(Tag::Purpose::gradient), ctx.compute));
  }
  fill({.y = squared_norm, .value = 0}, ctx.compute);
  for (size_t i = 0; i < shards_.size(); ++i) {
    ctx.compute.wait(summed[i]);
    squared_sum({.total = squared_norm, .x = gradients.slice(0, shards_[i].begin, shards_[i].end)},
                ctx.compute);
  }
  ctx.compute.wait(ctx.mesh.everyone().all_reduce(squared_norm, norm_piece,
                                                  update_tag(Tag::Purpose::norm), ctx.compute));
}

void ShardedOptimizer::update(double learning_rate, int64_t step, const Tensor& squared_norm,
                              StepContext& ctx) {
  const Tensor values = store_.values();
  std::vector<Event> gathered;
  for (const Shard& shard : shards_) {
    const auto own = [&](const Tensor& t) { return t.slice(0, shard.at, shard.at + shard.size()); };
    const Tensor value = values.slice(0, shard.begin, shard.end);
    if (masters_ && !has_masters_) convert({.y = own(masters_), .x = value}, ctx.compute);
    const Tensor updated = masters_ ? own(masters_) : value;
    for (const Parameter* parameter : shard.bucket->parameters) {
      const int64_t from = std::max(shard.begin, parameter->offset);
      const int64_t to = std::min(shard.end, parameter->offset + parameter->numel());
      if (from >= to) continue;
      const auto range = [&](const Tensor& t) {
        return t.slice(0, from - shard.begin, to - shard.begin);
      };
      adamw({.param = range(updated),
             .m = range(own(m_)),
             .v = range(own(v_)),
             .grad = store_.gradients().slice(0, from, to),
             .squared_norm = squared_norm,
             .grad_clip = config_.grad_clip,
             .lr = learning_rate,
             .beta1 = config_.beta1,
             .beta2 = config_.beta2,
             .eps = config_.eps,
             .weight_decay = parameter->decays() ? config_.weight_decay : 0.0,
             .step = step},
            ctx.compute);
    }
    if (masters_) convert({.y = value, .x = updated}, ctx.compute);
    gathered.push_back(shard.group->all_gather(shard.of(values), shard.cuts,
                                               update_tag(Tag::Purpose::parameter), ctx.compute));
  }
  has_masters_ = true;
  for (const Event& event : gathered) ctx.compute.wait(event);
}

std::vector<OwnedPiece> ShardedOptimizer::owned() const {
  std::vector<OwnedPiece> pieces;
  for (const Shard& shard : shards_) {
    for (const Parameter* parameter : shard.bucket->parameters) {
      const int64_t from = std::max(shard.begin, parameter->offset);
      const int64_t to = std::min(shard.end, parameter->offset + parameter->numel());
      if (from >= to) continue;
      pieces.push_back({.parameter = parameter,
                        .begin = from - parameter->offset,
                        .end = to - parameter->offset,
                        .value = store_.values().slice(0, from, to),
                        .gradient = store_.gradients().slice(0, from, to)});
    }
  }
  return pieces;
}

}  // namespace weft
