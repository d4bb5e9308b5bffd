// The two passes of one layer on simulated ranks: what they send, how long they take, and what of
// the transfers their schedule hides.
#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "parallel/comm/communicator.hpp"
#include "parallel/comm/simulated.hpp"

namespace weft {

/// A layer's program for one micro-batch on every rank of the sequence axis, on tensors without
/// bytes.
struct SimulatedProgram {
  int ranks;
  /// Runs on every rank at once: forward, a call of `forward_ended`, and backward.
  std::function<void(const SimulatedRank& rank, Ledgers ledgers,
                     const std::function<void()>& forward_ended)>
      run;
};

/// What one rank sends.
struct PassBytes {
  int64_t forward = 0, backward = 0;
  bool operator==(const PassBytes&) const = default;
};

/// Forward and backward of one layer for one micro-batch; vectors by rank.
struct SimulatedLayer {
  std::vector<double> forward_s;  // when the rank's forward ended
  std::vector<double> step_s;     // when its backward ended, which follows at once
  std::vector<double> kernels_s;  // of it, not spent waiting
  std::vector<PassBytes> sent;    // as the transport counted
  std::vector<PassBytes> booked;  // as the communicators had predicted

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
struct LayerOverlap {
  Overlap forward, step;
  double busy = 0;  // the mean over the ranks of the share of step.both_s that kernels fill
};

/// Throws what the program throws.
SimulatedLayer simulate_layer(const SimulatedProgram& program, const SimulatedMachine& machine,
                              SimulatedTime time);

/// Critical paths of the same.
LayerOverlap overlap_of(const SimulatedProgram& program, const SimulatedMachine& machine);

/// The seconds of a step by threads that sleep, on the scale of `machine`: real runs are slowed
/// down so that the critical path `critical_s` takes `real_s` seconds, and divided by as much. The
/// fastest of `repeats` counts, since other load only adds time.
double attained_step_s(const SimulatedProgram& program, const SimulatedMachine& machine,
                       double critical_s, double real_s, int repeats);

}  // namespace weft
