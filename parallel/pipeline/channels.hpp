// Channels: what neighbouring stages of a pipeline hand each other, one communicator for every pair
// of stages, direction and pass.
#pragma once

#include <map>
#include <memory>
#include <tuple>

#include "parallel/mesh.hpp"
#include "parallel/pipeline/schedules.hpp"

namespace weft {

/// One rank's ends of the channels that its stage has: one for the outputs and one for the
/// gradients between every two stages that hold neighbouring pieces of the model. On a channel
/// messages pass one way, first in, first out, and a channel waits for no other: whatever order two
/// stages have their actions in, none stands in the way of a message that the other needs first.
class PipelineChannels {
 public:
  /// Collective: every rank of `world` makes its own, with a schedule of the same placement. The
  /// stage of a rank is its coordinate on the pipeline axis of `shape`; what crosses is booked for
  /// the group "pipeline".
  PipelineChannels(World& world, const MeshShape& shape, const PipelineSchedule& schedule,
                   Ledgers ledgers, bool strict);

  int stage() const { return stage_; }
  /// The channel on which this rank sends to its peer of `stage`, rank 1 - rank() there: outputs
  /// going forward, gradients going backward.
  Communicator& to(int stage, Tag::Pass pass) { return *ends_.at({stage_, stage, pass}); }
  /// The channel on which it receives.
  Communicator& from(int stage, Tag::Pass pass) { return *ends_.at({stage, stage_, pass}); }
  /// How often transfers have waited for a GPU on the host so far.
  int64_t host_waits() const;

 private:
  using Key = std::tuple<int, int, Tag::Pass>;  // from, to

  int stage_;
  std::map<Key, std::unique_ptr<Communicator>> ends_;
};

}  // namespace weft
