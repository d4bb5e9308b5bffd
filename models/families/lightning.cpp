// Lightning Attention (Qin et al., arXiv 2401.04658) as in MiniMax-01 (arXiv 2501.08313): silu of
// queries, keys and values, one decay a head that fades with depth, a norm over the whole token and
// a sigmoid gate.
#include <cmath>

#include "models/state_family.hpp"

namespace weft {
namespace {

/// ALiBi's slopes 2^(-8 (h + 1) / H), less steep from layer to layer; the last layer hardly
/// forgets.
std::vector<double> log_decays(int64_t layer, int64_t layers, int64_t heads) {
  const double depth = static_cast<double>(layer) / (static_cast<double>(layers) - 1 + 1e-5);
  std::vector<double> logs;
  for (int64_t h = 0; h < heads; ++h) {
    const double slope = std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(heads));
    logs.push_back(-slope * (1 - depth + 1e-5));
  }
  return logs;
}

}  // namespace

const StateFamily kLightningFamily{.name = "lightning",
                                   .summary = "one fixed decay a head that fades with depth",
                                   .kind = StateKind::fixed,
                                   .output_gate = GateFunction::sigmoid,
                                   .silu = true,
                                   .scaled = false,
                                   .norm_heads = false,
                                   .fixed_log_decay = log_decays};

}  // namespace weft
