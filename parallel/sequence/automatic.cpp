// What "auto" stands for, found by running every strategy of the table on shapes alone.
#include <algorithm>

#include "parallel/comm/recording.hpp"
#include "parallel/sequence/attention_on_shapes.hpp"

namespace weft {
namespace {

/// One rank's call of a strategy on the meta device.
AttentionTraffic traffic_of_rank(const AttentionStrategy& strategy, const AttentionSetting& setting,
                                 int rank) {
  Ledger booked;
  const auto world = make_recording_world(rank, setting.cuts.pieces());
  const auto compute = make_meta_stream({});
  AttentionOnShapes attention(strategy, setting, *world, *compute, {.predicted = &booked});
  for (int pass = 0; pass < setting.forwards; ++pass) attention.forward();
  attention.backward();
  AttentionTraffic traffic;
  for (const auto& [key, bytes] : booked.entries()) traffic.bytes += bytes;
  for (const Lane lane : {Lane::forward, Lane::backward}) {
    traffic.calls += attention.mesh().along(Axis::sequence, lane).calls();
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
