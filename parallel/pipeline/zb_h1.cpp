// ZB-H1 (Qi et al., arXiv 2401.10241, section 2.1): 1F1B with the backward in two. The gradient of
// the input goes on at once, the gradients of the weights follow: on stage s those of micro-batch i
// come s micro-batches late, and the last s fill the time in which the stages before still drain.
// With costs f, b (input) and w (weights):
//   frames  min(p, m) on every stage, held until backward_weight: 1F1B's largest
//   span    m (f + b + w) + (p - 1) (f + b) - (min(p, m) - 1) min(f, b, w)
// For m >= p and w <= min(f, b) the bubble is the published (p - 1) (f + b - w), where 1F1B has
// (p - 1) (f + b + w). A longer w hides no more than the shorter of f and b: stage 0 waits for
// p - 1 gradients of the inputs, and the last stage for p - 1 forwards.
#include <algorithm>

#include "parallel/pipeline/schedules.hpp"

namespace weft {

PipelineSchedule make_zb_h1(const PipelineShape& shape) {
  const int count = shape.micro_batches;
  PipelineSchedule schedule{.shape = shape};
  for (int stage = 0; stage < shape.stages; ++stage) {
    const int ahead = std::min(shape.stages - 1 - stage, count), late = std::min(stage, count);
    std::vector<PipelineAction>& actions = schedule.actions.emplace_back();
    for (int i = 0; i < ahead; ++i) actions.push_back({ActionKind::forward, i});
    for (int i = 0; i < count; ++i) {
      if (ahead + i < count) actions.push_back({ActionKind::forward, ahead + i});
      actions.push_back({ActionKind::backward_input, i});
      if (i >= late) actions.push_back({ActionKind::backward_weight, i - late});
    }
    for (int i = count - late; i < count; ++i) actions.push_back({ActionKind::backward_weight, i});
  }
  return schedule;
}

}  // namespace weft
