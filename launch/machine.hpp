// The machine that a measurement ran on.
#pragma once

#include <cstdint>
#include <string>

namespace weft {

struct Machine {
  std::string cpu;           // as the system names it; empty where it does not
  int cores = 0;             // that this process may run on
  int64_t memory_bytes = 0;  // that it may still take, without swap
};

/// What the system and the control group of this process say.
Machine this_machine();

/// The GPUs that this process can use.
struct Gpus {
  int count = 0;
  std::string name;          // of the first, as its driver has it
  int64_t memory_bytes = 0;  // free on the fullest of those that the ranks are on
};

/// What the driver says, for ranks that take the GPUs in turn, `most_ranks` of them at most. This
/// process then has its context on each of theirs.
Gpus these_gpus(int most_ranks);

}  // namespace weft
