// One layer's attention on simulated ranks: the program of a strategy as it is, on shapes.
#pragma once

#include <algorithm>
#include <vector>

#include "parallel/comm/simulated.hpp"
#include "parallel/sequence/strategies.hpp"

namespace weft {

/// What one rank sends.
struct AttentionBytes {
  int64_t forward = 0, backward = 0;
  bool operator==(const AttentionBytes&) const = default;
};

/// Forward and backward of one layer for one micro-batch; vectors by rank.
struct SimulatedAttention {
  std::vector<double> forward_s;       // when the rank's forward ended
  std::vector<double> step_s;          // when its backward ended, which follows at once
  std::vector<double> kernels_s;       // of it, not spent waiting
  std::vector<AttentionBytes> sent;    // as the transport counted
  std::vector<AttentionBytes> booked;  // as the communicators had predicted

  /// The last rank's.
  double forward() const;
  double step() const;
};

/// A program's critical path with its kernels alone, its transfers alone, and both.
struct Overlap {
  double kernels_s = 0;    // transfers take no time
  double transfers_s = 0;  // kernels take no time
  double both_s = 0;       // at least the longer of the two, at most their sum

  /// The share of the transfers that the schedule hides: 1 when they add nothing to the kernels,
  /// 0 when they add all of themselves. Transfers longer than the kernels cannot reach 1.
  double hidden() const {
    if (transfers_s == 0) return 1;
    return std::clamp((kernels_s + transfers_s - both_s) / transfers_s, 0.0, 1.0);  // of rounding
  }
};
struct AttentionOverlap {
  Overlap forward, step;
  double busy = 0;  // the mean over the ranks of the share of step.both_s that kernels fill
};

/// Runs forward and backward over the ranks of `setting.cuts`. There are no documents: what crosses
/// ranks does not depend on them. Throws what the strategy throws.
SimulatedAttention simulate_attention(const AttentionStrategy& strategy,
                                      const AttentionSetting& setting,
                                      const SimulatedMachine& machine, SimulatedTime time);

/// Critical paths of the same.
AttentionOverlap overlap_of(const AttentionStrategy& strategy, const AttentionSetting& setting,
                            const SimulatedMachine& machine);

}  // namespace weft
