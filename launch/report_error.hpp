// The one line that a failure prints, and the exit code it leaves with.
#pragma once

#include <cstdint>
#include <exception>
#include <string>

#include "src/core/check.hpp"

namespace weft {

/// Where this thread's rank stands; -1: not yet. Part of the error line.
struct Whereabouts {
  int rank = -1;
  int64_t step = -1;
};
Whereabouts& whereabouts();

struct Failure {
  ExitCode code;
  std::string message;  // "... (file:line)" for our own invariants
};
/// What an exception means: Error as it says, std::bad_alloc out of memory, others internal.
Failure describe(const std::exception_ptr& error);

/// Prints "weft: rank 2 on host h, step 17: message" to stderr and the log, in one write.
void report(const Failure& failure, const Whereabouts& where);

}  // namespace weft
