// 1F1B: PipeDream-Flush (Narayanan et al., arXiv 2006.09503), Megatron-LM's schedule of one chunk.
// Stage s runs p - 1 - s forwards ahead, then a forward and a backward in turn.
//   frames  min(p - s, m) on stage s
//   bubble  (p - 1) / (m + p - 1), GPipe's
#include <algorithm>

#include "parallel/pipeline/schedules.hpp"

namespace weft {

PipelineSchedule make_one_forward_one_backward(const PipelineShape& shape) {
  const int count = shape.micro_batches;
  PipelineSchedule schedule{.shape = shape};
  for (int stage = 0; stage < shape.stages; ++stage) {
    const int ahead = std::min(shape.stages - 1 - stage, count);
    std::vector<PipelineAction>& actions = schedule.actions.emplace_back();
    for (int i = 0; i < ahead; ++i) actions.push_back({ActionKind::forward, i});
    for (int i = 0; i < count; ++i) {
      if (ahead + i < count) actions.push_back({ActionKind::forward, ahead + i});
      actions.push_back({ActionKind::backward, i});
    }
  }
  return schedule;
}

}  // namespace weft
