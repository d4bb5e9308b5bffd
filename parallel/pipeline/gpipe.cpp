// GPipe (Huang et al., arXiv 1811.06965): all forwards, then all backwards.
//   frames  m on every stage
//   bubble  (p - 1) / (m + p - 1)
// The paper draws the backwards in descending order; here they ascend like all others, for the same
// time and frames.
#include "parallel/pipeline/schedules.hpp"

namespace weft {

PipelineSchedule make_gpipe(const PipelineShape& shape) {
  std::vector<PipelineAction> actions;
  for (const ActionKind kind : {ActionKind::forward, ActionKind::backward}) {
    for (int i = 0; i < shape.micro_batches; ++i) actions.push_back({kind, i});
  }
  return {.shape = shape, .actions = std::vector(shape.stages, actions)};
}

}  // namespace weft
