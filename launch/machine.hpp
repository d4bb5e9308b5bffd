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

}  // namespace weft
