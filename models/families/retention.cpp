// Multi-scale retention (RetNet, Sun et al., arXiv 2307.08621): rotary positions and one decay a
// head, 1 - 2^-(5 + h); values are twice as wide as keys.
#include <cmath>

#include "models/state_family.hpp"

namespace weft {
namespace {

std::vector<double> log_decays(int64_t, int64_t, int64_t heads) {
  std::vector<double> logs;
  for (int64_t h = 0; h < heads; ++h) {
    logs.push_back(std::log1p(-std::exp2(-5.0 - static_cast<double>(h))));
  }
  return logs;
}

}  // namespace

const StateFamily kRetentionFamily{.name = "retention",
                                   .summary = "rotary positions, one fixed decay a head",
                                   .kind = StateKind::fixed,
                                   .expand_v = 2,
                                   .rotary = true,
                                   .fixed_log_decay = log_decays};

}  // namespace weft
