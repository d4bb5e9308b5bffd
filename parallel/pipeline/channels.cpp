#include "parallel/pipeline/channels.hpp"

#include <algorithm>
#include <set>

namespace weft {

PipelineChannels::PipelineChannels(World& world, const MeshShape& shape,
                                   const PipelineSchedule& schedule, Ledgers ledgers, bool strict) {
  const Coordinate here = coordinate_of(shape, world.rank());
  stage_ = here[static_cast<int>(Axis::pipeline)];
  WEFT_CHECK(schedule.shape.stages == shape.along(Axis::pipeline), schedule.shape.stages,
             " stages, the mesh is ", shape.text());
  const auto rank_at = [&](int stage) {
    Coordinate there = here;
    there[static_cast<int>(Axis::pipeline)] = stage;
    return rank_of(shape, there);
  };
  std::set<Key> all;
  for (int piece = 0; piece + 1 < schedule.pieces(); ++piece) {
    const int from = schedule.place(piece).stage, to = schedule.place(piece + 1).stage;
    if (from == to) continue;
    all.insert({from, to, Tag::Pass::forward});
    all.insert({to, from, Tag::Pass::backward});
  }
  // Every rank goes through all channels in the same order and makes those that end here, so that
  // nobody waits for a member that waits for another channel.
  for (const Key& key : all) {
    const auto& [from, to, pass] = key;
    if (from != stage_ && to != stage_) continue;
    std::vector<int> members = {rank_at(from), rank_at(to)};
    std::sort(members.begin(), members.end());
    const std::string label = concat("pipeline ", from, " to ", to, " ", name(pass));
    ends_[key] = std::make_unique<Communicator>(world.group(members, label), world.device(),
                                                "pipeline", ledgers, strict);
  }
}

int64_t PipelineChannels::host_waits() const {
  int64_t waits = 0;
  for (const auto& [key, channel] : ends_) waits += channel->host_waits();
  return waits;
}

}  // namespace weft
