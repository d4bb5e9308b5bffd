#include "parallel/data/sharded_optimizer.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "src/core/cuda/range.hpp"
#include "src/kernels/optimizer.hpp"
#include "src/kernels/pointwise.hpp"

namespace weft {
namespace {

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

/// Calls f(parameter, which elements of the shard's piece are its) for all that have some.
template <class F>
void for_each_part(const ParameterShard& shard, const F& f) {
  for (const Parameter* p : shard.bucket->parameters) {
    const Range part{std::max(shard.begin(), p->offset) - shard.begin(),
                     std::min(shard.end(), p->offset + p->numel()) - shard.begin()};
    if (part.begin < part.end) f(*p, part);
  }
}

double muon_scale(const Parameter& parameter) {
  return 0.2 * std::sqrt(static_cast<double>(std::max(parameter.shape[0], parameter.shape[1])));
}

}  // namespace

ShardedOptimizer::ShardedOptimizer(const AdamWConfig& config, ParameterTraffic& traffic,
                                   Arena& arena, const MuonConfig& muon_config,
                                   std::optional<Muon> muon)
    : config_(config), muon_config_(muon_config), traffic_(traffic), muon_(std::move(muon)) {
  const DType dtype = traffic.store().dtype(), wide = accumulator_of(dtype);
  int64_t second_moments = 0;
  for (const ParameterShard& shard : traffic.shards()) {
    for_each_part(shard, [&](const Parameter& parameter, const Range& part) {
      if (!orthogonalises(parameter)) second_moments += part.size();
    });
  }
  m_ = arena.allocate_zeros(muon_ ? "momentum" : "adam m", wide, {traffic.size()});
  v_ = arena.allocate_zeros("adam v", wide, {second_moments});
  if (dtype != wide) masters_ = arena.allocate_zeros("masters", wide, {traffic.size()});
}

void ShardedOptimizer::reduce(const Tensor& squared_norm, StepContext& ctx) {
  traffic_.finish_gradients(ctx.compute);
  const Scope scope(ctx.scratch);
  const Tensor norm_piece = ctx.scratch.allocate("norm piece", DType::f64, {1});
  begin_norm({.squared_norm = squared_norm, .loss_sum = ctx.loss_sum}, ctx.compute);
  for (const ParameterShard& shard : traffic_.shards()) {
    squared_sum({.total = squared_norm, .x = shard.gradient}, ctx.compute);
  }
  ctx.compute.wait(ctx.mesh.everyone().all_reduce(
      squared_norm, norm_piece, {-1, Tag::Purpose::norm, Tag::Pass::update, 0}, ctx.compute));
}

void ShardedOptimizer::prepare_matrices(const Tensor& squared_norm, StepContext& ctx) {
  for (const ParameterShard& shard : traffic_.shards()) {
    for_each_part(shard, [&](const Parameter& parameter, const Range& part) {
      if (!orthogonalises(parameter)) return;
      const Tensor gradient = shard.gradient.slice(0, part.begin, part.end);
      nesterov({.update = gradient,
                .m = m_.slice(0, shard.at + part.begin, shard.at + part.end),
                .grad = gradient,
                .squared_norm = squared_norm,
                .grad_clip = config_.grad_clip,
                .momentum = muon_config_.momentum},
               ctx.compute);
    });
  }
  muon_->orthogonalise(ctx);
}

void ShardedOptimizer::update(double learning_rate, int64_t step, const Tensor& squared_norm,
                              StepContext& ctx) {
  const cuda::NamedRange range("optimizer");
  if (muon_) prepare_matrices(squared_norm, ctx);
  int64_t second_moments = 0;
  for (const ParameterShard& shard : traffic_.shards()) {
    const auto own = [&](const Tensor& t) { return t.slice(0, shard.at, shard.at + shard.size()); };
    const Tensor updated = masters_ ? own(masters_) : shard.value;
    for_each_part(shard, [&](const Parameter& parameter, const Range& part) {
      const auto of_part = [&](const Tensor& t) { return t.slice(0, part.begin, part.end); };
      const double decay = parameter.decays() ? config_.weight_decay : 0.0;
      if (orthogonalises(parameter)) {
        decayed_step({.param = of_part(updated),
                      .update = of_part(shard.gradient),
                      .squared_norm = squared_norm,
                      .lr = learning_rate,
                      .scale = muon_scale(parameter),
                      .weight_decay = decay},
                     ctx.compute);
        return;
      }
      adamw({.param = of_part(updated),
             .m = of_part(own(m_)),
             .v = v_.slice(0, second_moments, second_moments + part.size()),
             .grad = of_part(shard.gradient),
             .squared_norm = squared_norm,
             .grad_clip = config_.grad_clip,
             .lr = learning_rate,
             .beta1 = config_.beta1,
             .beta2 = config_.beta2,
             .eps = config_.eps,
             .weight_decay = decay,
             .step = step},
            ctx.compute);
      second_moments += part.size();
    });
    if (masters_) convert({.y = shard.value, .x = updated}, ctx.compute);
    traffic_.publish(shard, ctx.compute);
  }
  traffic_.finish_update(ctx.compute);
}

std::vector<HeldValues> ShardedOptimizer::masters() const {
  std::vector<HeldValues> masters;
  for (const OwnedPiece& piece : owned()) {
    if (!piece.master) continue;
    masters.push_back({.parameter = piece.parameter,
                       .begin = piece.begin,
                       .end = piece.end,
                       .values = piece.master});
  }
  return masters;
}

std::vector<OwnedPiece> ShardedOptimizer::owned() const {
  std::vector<OwnedPiece> pieces;
  for (const ParameterShard& shard : traffic_.shards()) {
    for_each_part(shard, [&](const Parameter& parameter, const Range& part) {
      const int64_t begin = shard.begin() + part.begin - parameter.offset;
      pieces.push_back(
          {.parameter = &parameter,
           .begin = begin,
           .end = begin + part.size(),
           .value = shard.value.slice(0, part.begin, part.end),
           .gradient = shard.gradient.slice(0, part.begin, part.end),
           .master = masters_ ? masters_.slice(0, shard.at + part.begin, shard.at + part.end)
                              : Tensor{}});
    });
  }
  return pieces;
}

}  // namespace weft
