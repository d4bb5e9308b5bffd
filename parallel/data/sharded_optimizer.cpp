#include "parallel/data/sharded_optimizer.hpp"

#include <algorithm>

#include "src/kernels/optimizer.hpp"
#include "src/kernels/pointwise.hpp"

namespace weft {

ShardedOptimizer::ShardedOptimizer(const AdamWConfig& config, const ParameterStore& store, int rank,
                                   int replicas, Arena& arena)
    : config_(config),
      store_(store),
      cuts_(Cuts::even(store.size(), replicas)),
      begin_(cuts_.begin(rank)),
      end_(cuts_.end(rank)) {
  const DType wide = accumulator_of(store.dtype());
  m_ = arena.allocate_zeros("adam m", wide, {end_ - begin_});
  v_ = arena.allocate_zeros("adam v", wide, {end_ - begin_});
  if (store.dtype() != wide) masters_ = arena.allocate("masters", wide, {end_ - begin_});
}

void ShardedOptimizer::step(double learning_rate, int64_t step, const Tensor& squared_norm,
                            StepContext& ctx) {
  Communicator& replicas = ctx.mesh.replicas();
  const Scope scope(ctx.scratch);
  const Tensor piece_scratch =
      ctx.scratch.allocate("gradient piece", store_.gradients().dtype, {end_ - begin_});
  const Tensor norm_scratch = ctx.scratch.allocate("norm piece", DType::f64, {1});
  const auto tag = [](Tag::Purpose purpose) { return Tag{-1, purpose, Tag::Pass::update, 0}; };

  ctx.compute.wait(replicas.reduce_scatter(store_.gradients(), cuts_, piece_scratch,
                                           tag(Tag::Purpose::gradient), ctx.compute));
  fill({.y = squared_norm, .value = 0}, ctx.compute);
  squared_sum({.total = squared_norm, .x = store_.gradients().slice(0, begin_, end_)}, ctx.compute);
  ctx.compute.wait(
      replicas.all_reduce(squared_norm, norm_scratch, tag(Tag::Purpose::norm), ctx.compute));

  const Tensor own = store_.values().slice(0, begin_, end_);
  if (masters_ && !has_masters_) convert({.y = masters_, .x = own}, ctx.compute);
  has_masters_ = true;
  const Tensor updated = masters_ ? masters_ : own;
  for (const Parameter* parameter : store_.parameters()) {
    const int64_t from = std::max(begin_, parameter->offset);
    const int64_t to = std::min(end_, parameter->offset + parameter->numel());
    if (from >= to) continue;
    adamw({.param = updated.slice(0, from - begin_, to - begin_),
           .m = m_.slice(0, from - begin_, to - begin_),
           .v = v_.slice(0, from - begin_, to - begin_),
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
  if (masters_) convert({.y = own, .x = masters_}, ctx.compute);
  ctx.compute.wait(
      replicas.all_gather(store_.values(), cuts_, tag(Tag::Purpose::parameter), ctx.compute));
}

}  // namespace weft
