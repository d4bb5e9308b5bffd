// Training steps on ranks that are threads of this process: timed, and held to what was planned.
#pragma once

#include <vector>

#include "launch/reference_step.hpp"
#include "launch/start_ranks.hpp"
#include "launch/trainer.hpp"

namespace weft {

/// A config's step: where its ranks are, and what it will take.
struct PlannedStep {
  Config config;  // whose train.device is decided
  RankChoice choice;
  std::vector<StepPlan> plans;  // by rank

  int64_t sequence_bytes() const;  // that all ranks send along the sequence axis
  int64_t peak_bytes() const;      // of the fullest rank's arenas
};

/// Places the ranks of the config's mesh (place_ranks) and plans them all. Throws Error(config).
PlannedStep plan_ranks(Config config);

/// What the arenas of ranks that share memory take together, `cards` memories that they take in
/// turn: of the memory that has most.
int64_t shared_bytes(const std::vector<StepPlan>& plans, int cards);

struct StepTimes {
  std::vector<double> seconds;  // by step that was timed: of the slowest rank
  FirstStep first;              // gradients only where they were asked for
  int64_t sequence_bytes = 0;   // counted: what all ranks sent along the sequence axis in a step
  int64_t peak_bytes = 0;       // of the fullest rank's arenas
};

/// Trains a step to warm up and then `repeats` that are timed, from initial values, on the config's
/// data and mesh. On the CPU all ranks begin a timed step together, and loading its batch is not
/// part of it. On GPUs the steps follow one another as in a training run, the next enqueued before
/// the host reads a report, and a step is from the end of the one before it to its own; one more,
/// before which the GPU was idle, goes ahead of them.
///
/// Throws Error(comparison) when the bytes of a step or the peaks of the arenas are not those of
/// the plans, Error(diverged) when a gradient is not finite. `stand_ins` is for tests, which show
/// that a comparison finds a mistake.
StepTimes time_steps(const PlannedStep& planned, int repeats, bool gradients,
                     const StandIns& stand_ins = {});

}  // namespace weft
