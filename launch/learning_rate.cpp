#include "launch/learning_rate.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "src/core/check.hpp"

namespace weft {
namespace {

/// How far the decay that reaches its end at `last` has come, in [0, 1], when it takes `length`
/// steps; 0 for a decay of no steps, so that a run of one step learns.
double progress(int64_t step, int64_t last, int64_t length) {
  if (length <= 0) return 0;
  return std::clamp(1.0 - static_cast<double>(last - step) / static_cast<double>(length), 0.0, 1.0);
}

}  // namespace

double learning_rate(const OptimizerConfig& config, int64_t step, int64_t steps) {
  WEFT_CHECK(step >= 0 && steps > 0, "step ", step, " of ", steps);
  const int64_t warmup = config.warmup_steps;
  if (step < warmup) {
    return config.lr * static_cast<double>(step + 1) / static_cast<double>(warmup);
  }
  const int64_t last = steps - 1;
  const int64_t after_warmup = last - warmup;
  switch (config.schedule) {
    case Schedule::cosine: {
      const double done = progress(std::min(step, last), last, after_warmup);
      return std::lerp(config.lr, config.min_lr, (1.0 - std::cos(std::numbers::pi * done)) / 2);
    }
    case Schedule::wsd: {
      const auto share = std::llround(config.decay_fraction * static_cast<double>(steps));
      const int64_t length = std::min<int64_t>(share, after_warmup);
      return std::lerp(config.lr, config.min_lr, progress(std::min(step, last), last, length));
    }
    case Schedule::constant:
      break;
  }
  return config.lr;
}

}  // namespace weft
