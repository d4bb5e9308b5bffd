#include "parallel/pipeline/slots.hpp"

#include <algorithm>

namespace weft {
namespace {

/// Slots that an action of the kind `take` takes and one of the kinds `give` gives back.
SlotPlan slots_between(const PipelineSchedule& schedule, int stage, ActionKind take,
                       std::initializer_list<ActionKind> give) {
  const auto& [stages, micro_batches, chunks] = schedule.shape;
  SlotPlan plan{.taken = std::vector(chunks, std::vector<int>(micro_batches, -1))};
  std::vector<bool> busy;
  for (const PipelineAction& action : schedule.actions[stage]) {
    int& slot = plan.taken[action.chunk][action.micro_batch];
    if (action.kind == take) {
      const auto free = std::find(busy.begin(), busy.end(), false);
      slot = static_cast<int>(free - busy.begin());
      if (free == busy.end()) busy.push_back(true);
      busy[slot] = true;
    } else if (std::find(give.begin(), give.end(), action.kind) != give.end() && slot >= 0) {
      busy[slot] = false;
    }
  }
  plan.count = static_cast<int>(busy.size());
  return plan;
}

}  // namespace

SlotPlan frame_slots(const PipelineSchedule& schedule, int stage) {
  return slots_between(schedule, stage, ActionKind::forward,
                       {ActionKind::backward, ActionKind::backward_input});
}

SlotPlan weight_slots(const PipelineSchedule& schedule, int stage) {
  return slots_between(schedule, stage, ActionKind::backward_input, {ActionKind::backward_weight});
}

}  // namespace weft
