// One rank's attention of one layer on tensors without bytes: a strategy as it is, run for what it
// sends, for the time that it takes, or for the memory.
#pragma once

#include <memory>

#include "parallel/sequence/strategies.hpp"

namespace weft {

/// Forward and backward of one layer and micro-batch, all tensors and scratch on the meta device.
/// No documents: what crosses ranks does not depend on them.
class AttentionOnShapes {
 public:
  /// Collective over `world`, whose ranks are the sequence axis; `compute` is of the meta device.
  /// `setting` stays where it is meanwhile.
  AttentionOnShapes(const AttentionStrategy& strategy, const AttentionSetting& setting,
                    World& world, Stream& compute, Ledgers ledgers);

  void forward();
  void backward();
  ProcessMesh& mesh() { return mesh_; }

 private:
  ProcessMesh mesh_;
  Arena scratch_, slab_;
  ParameterStore no_parameters_;
  StepContext ctx_;
  AttentionShard shard_;
  Tensor out_, lse_, dout_;
  AttentionGradients gradients_;
  std::unique_ptr<AttentionParallel> attention_;
};

}  // namespace weft
