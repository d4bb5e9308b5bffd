// Slots: how many memories a stage needs for what lives from one action to another, and which one a
// micro-batch takes, known before the step.
#pragma once

#include <vector>

#include "parallel/pipeline/schedules.hpp"

namespace weft {

/// Memories that micro-batches take in turn, each the lowest that is free.
struct SlotPlan {
  int count = 0;                        // memories
  std::vector<std::vector<int>> taken;  // [chunk][micro_batch]: which one; -1: none is needed
};

/// Of frames: from forward to the end of backward or backward_input.
SlotPlan frame_slots(const PipelineSchedule& schedule, int stage);

/// Of products of weights that wait: from backward_input to the end of backward_weight.
SlotPlan weight_slots(const PipelineSchedule& schedule, int stage);

}  // namespace weft
