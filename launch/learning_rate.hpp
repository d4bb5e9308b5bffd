// The learning rate of a step.
#pragma once

#include <cstdint>

#include "launch/config.hpp"

namespace weft {

/// Linear warm-up: step s gets (s + 1) / warmup_steps of lr. Then cosine falls to min_lr at the
/// last step; wsd stays and falls in a line to min_lr over the last decay_fraction of all steps;
/// constant stays. `step` counts from 0; a step after the last is as the last.
double learning_rate(const OptimizerConfig& config, int64_t step, int64_t steps);

}  // namespace weft
