// Interleaved 1F1B (Narayanan et al., arXiv 2104.04473, section 2.2; Megatron-LM): a stage owns v
// chunks, p pieces of the model apart. Micro-batches go in groups of p: a group through chunk 0,
// through chunk 1, ..., then the next group; backward the same with the chunks in reverse. Stage s
// runs 2 (p - 1 - s) + (v - 1) p chunk-forwards ahead, then one forward and one backward in turn.
//   frames  min(v m, 2 (p - 1 - s) + (v - 1) p + 1) of chunks on stage s
//   bubble  (p - 1) / (v m + p - 1)
// Both for m a multiple of p. Any other m runs the schedule of the next multiple without the
// micro-batches that are not there. What is left keeps its order, so that it waits for nothing that
// it did not wait for before: it ends no later and holds no more. The last group, of r = m mod p,
// does not fill the stages: in time that is at most (p - r) (v - 1) forwards and backwards of a
// chunk more than the formula, and exactly that for m < p.
#include <algorithm>

#include "parallel/pipeline/schedules.hpp"

namespace weft {
namespace {

/// The k-th forward or backward of a stage when micro-batches fill whole groups.
PipelineAction kth(ActionKind kind, int k, const PipelineShape& shape) {
  const int group_size = shape.stages * shape.chunks;
  const int group = k / group_size, chunk = k % group_size / shape.stages;
  return {.kind = kind,
          .micro_batch = group * shape.stages + k % shape.stages,
          .chunk = kind == ActionKind::forward ? chunk : shape.chunks - 1 - chunk};
}

}  // namespace

PipelineSchedule make_interleaved(const PipelineShape& shape) {
  const int groups = (shape.micro_batches + shape.stages - 1) / shape.stages;
  const int count = groups * shape.stages * shape.chunks;  // forwards of a stage
  PipelineSchedule schedule{.shape = shape};
  for (int stage = 0; stage < shape.stages; ++stage) {
    const int fill = 2 * (shape.stages - 1 - stage) + (shape.chunks - 1) * shape.stages;
    const int ahead = std::min(fill, count);
    std::vector<PipelineAction>& actions = schedule.actions.emplace_back();
    for (int k = 0; k < ahead; ++k) actions.push_back(kth(ActionKind::forward, k, shape));
    for (int k = 0; k < count; ++k) {
      if (ahead + k < count) actions.push_back(kth(ActionKind::forward, ahead + k, shape));
      actions.push_back(kth(ActionKind::backward, k, shape));
    }
    std::erase_if(actions, [&](const PipelineAction& action) {
      return action.micro_batch >= shape.micro_batches;
    });
  }
  return schedule;
}

}  // namespace weft
