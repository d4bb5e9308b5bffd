// What "auto" stands for, found by running every strategy of the table on shapes alone.
#include <algorithm>
#include <limits>

#include "parallel/comm/recording.hpp"
#include "parallel/sequence/strategies.hpp"

namespace weft {
namespace {

/// One rank's call of a strategy on the meta device.
AttentionTraffic traffic_of_rank(const AttentionStrategy& strategy, const AttentionSetting& s,
                                 int rank) {
  MeshShape shape;
  shape.along(Axis::sequence) = s.cuts.pieces();
  Ledger booked;
  const auto world = make_recording_world(rank, s.cuts.pieces());
  ProcessMesh mesh(*world, shape, {.predicted = &booked}, /*strict=*/false);
  const auto compute = make_meta_stream({});
  Arena scratch("scratch", Device::meta, 0), slab("shard", Device::meta, 0);
  const ParameterStore none({}, s.dtype, slab);
  StepContext ctx{.mesh = mesh,
                  .compute = *compute,
                  .scratch = scratch,
                  .parameters = none,
                  .dtype = s.dtype,
                  .loss_sum = {}};
  const int64_t B = s.batch, N = s.cuts.total(), T = s.cuts.size(rank);
  const DType wide = accumulator_of(s.dtype);
  const auto heads = [&](DType dtype, int64_t count) {
    return slab.allocate("heads", dtype, {B, T, count, s.head_dim});
  };
  const auto intervals = [&](int64_t tokens) {
    return slab.allocate("intervals", DType::i64, {B, tokens});
  };
  const AttentionShard shard{.q = heads(s.dtype, s.heads),
                             .k = heads(s.dtype, s.kv_heads),
                             .v = heads(s.dtype, s.kv_heads),
                             .key_begin = intervals(T),
                             .key_end = intervals(T),
                             .cuts = s.cuts,
                             .scale = 1,
                             .causal = s.causal,
                             .layer = 0,
                             .micro_batch = 0,
                             .all_key_begin = intervals(N),
                             .all_key_end = intervals(N)};
  const Tensor out = heads(wide, s.heads), lse = slab.allocate("lse", wide, {B, s.heads, T});
  const AttentionGradients gradients{
      .dq = heads(wide, s.heads), .dk = heads(wide, s.kv_heads), .dv = heads(wide, s.kv_heads)};
  const auto attention = strategy.make();
  for (int pass = 0; pass < s.forwards; ++pass) attention->forward(shard, out, lse, ctx);
  attention->backward(shard, out, lse, heads(s.dtype, s.heads), gradients, ctx);
  AttentionTraffic traffic;
  for (const auto& [key, bytes] : booked.entries()) traffic.bytes += bytes;
  for (const Lane lane : {Lane::forward, Lane::backward}) {
    traffic.calls += mesh.along(Axis::sequence, lane).calls();
  }
  return traffic;
}

}  // namespace

AttentionTraffic attention_traffic(const AttentionStrategy& strategy,
                                   const AttentionSetting& setting) {
  AttentionTraffic sum;
  for (int rank = 0; rank < setting.cuts.pieces(); ++rank) {
    const AttentionTraffic one = traffic_of_rank(strategy, setting, rank);
    sum.bytes += one.bytes;
    sum.calls = std::max(sum.calls, one.calls);
  }
  return sum;
}

const AttentionStrategy& cheapest_strategy(const AttentionSetting& setting) {
  const AttentionStrategy* best = nullptr;
  AttentionTraffic least;
  for (const AttentionStrategy& strategy : attention_strategies()) {
    const AttentionTraffic traffic = attention_traffic(strategy, setting);
    if (best != nullptr && traffic >= least) continue;
    best = &strategy;
    least = traffic;
  }
  return *best;
}

}  // namespace weft
