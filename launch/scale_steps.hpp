// Training steps on ranks that are threads of this process: timed, and held to what was planned and
// to what one rank computes.
#pragma once

#include <vector>

#include "launch/recording.hpp"
#include "launch/trainer.hpp"

namespace weft {

/// The first step of a run as all ranks computed it together.
struct FirstStep {
  double loss = 0;
  std::vector<Recording::Entry> gradients;  // of all ranks, before clipping
};

struct StepTimes {
  std::vector<double> seconds;  // by step after the first: of the slowest rank
  FirstStep first;              // gradients only where they were asked for
  int64_t sequence_bytes = 0;   // counted: what all ranks sent along the sequence axis in a step
  int64_t peak_bytes = 0;       // of the fullest rank's arenas
};

/// The plans of all ranks of the config's mesh.
std::vector<StepPlan> plan_ranks(const Config& config);

/// What the ranks of the plans send along the sequence axis in a step.
int64_t sequence_bytes(const std::vector<StepPlan>& plans);

/// Trains a step to warm up and `repeats` more, from initial values, on the config's data and mesh;
/// loading a batch is not part of a step. `plans` are those of plan_ranks. Throws Error(comparison)
/// when the bytes of a step or the peaks of the arenas are not those of the plans, Error(diverged)
/// when a gradient is not finite. `stand_ins` is for tests, which show that a comparison finds a
/// mistake.
StepTimes time_steps(const Config& config, const std::vector<StepPlan>& plans, int repeats,
                     bool gradients, const StandIns& stand_ins = {});

}  // namespace weft
