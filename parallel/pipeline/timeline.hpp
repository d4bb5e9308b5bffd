// What a pipeline schedule takes: its time, by simulating who waits for whom, and its frames.
#pragma once

#include <limits>
#include <string>
#include <vector>

#include "parallel/pipeline/schedules.hpp"

namespace weft {

/// In any unit of time. Those of an action are of one chunk; backward takes both of its parts.
struct ActionCosts {
  double forward = 1;          // f
  double backward_input = 1;   // b
  double backward_weight = 1;  // w
  double hand_over = 0;        // from the end of an action to its use on another stage

  double of(ActionKind kind) const;
};

struct ActionTime {
  double begin;
  double end;
};
using Timeline = std::vector<std::vector<ActionTime>>;  // [stage][action], as in the schedule

inline constexpr int kUnlimitedSlots = std::numeric_limits<int>::max();

/// Every stage works through its list and begins an action as soon as it can. Hand-overs between
/// two stages pass first in, first out, outputs and gradients apart, through `slots` places that
/// the receiving action frees when it begins; a stage whose hand-over finds no place stands still.
///
/// Throws Error(internal) with the stage and the action at fault when the schedule cannot run: an
/// action comes before what it needs of its own stage, a hand-over arrives that is not the one
/// expected, the stages wait for each other for ever, or a hand-over is left that nobody takes.
Timeline timeline(const PipelineSchedule& schedule, const ActionCosts& costs,
                  int slots = kUnlimitedSlots);

/// When the last stage ends.
double span(const Timeline& times);
double span(const PipelineSchedule& schedule, const ActionCosts& costs);

/// The share of the stages' time in which they wait: 1 - busy / (p span).
double bubble_share(const PipelineSchedule& schedule, const ActionCosts& costs);

/// The most frames alive at once on each stage, in frames of one chunk. A frame is alive from its
/// forward to the end of its backward or backward_weight.
std::vector<int> peak_frames(const PipelineSchedule& schedule);

/// "backward_input of micro-batch 3, chunk 0"
std::string text(const PipelineAction& action);

}  // namespace weft
