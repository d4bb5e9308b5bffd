// The training step of one rank against its floor: the matrix products that the step cannot do
// without, timed alone.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "launch/config.hpp"
#include "src/core/kernel_call.hpp"

namespace weft {

struct StepBench {
  /// All products of one kernel and one shape in a step.
  struct Products {
    std::string kernel;
    Product shape;  // flops of all of them
    double seconds = 0;
  };
  /// All calls of one kernel in a step.
  struct Kernel {
    std::string name;
    int64_t calls = 0;
    Cost cost;
    double seconds = 0;
  };
  struct Run {
    double step_s = 0;
    double floor_s = 0;
  };

  std::vector<Run> runs;           // in the order they ran: step, floor, step, floor
  std::vector<Products> products;  // in the order the step first issues them
  std::vector<Kernel> kernels;     // slowest first
  double step_s = 0, floor_s = 0;  // medians over the runs, as all seconds above
  double rest_s = 0;               // of the step: outside of kernels

  double ratio() const { return floor_s > 0 ? step_s / floor_s : 0; }
  /// Of one kernel's products.
  double floor_of(const std::string& kernel) const;
};

/// Runs `repeats` steps on synthetic tokens, each followed by its floor, after one of both to warm
/// up. One thread, one BLAS thread. Throws Error(config) when the mesh is not one rank.
///
/// The floor is what `shape`s say of the products of projections, MLP, head and attention, forward
/// and backward, each shape timed on operands of its own size that nothing else touches: warmer
/// caches than the step's. A masked attention block counts the pairs that the mask leaves and
/// nothing more, as that many whole tiles of the kernel; where this is no whole number, one more
/// tile runs and its seconds count in proportion.
StepBench bench_step(Config config, int repeats);

}  // namespace weft
