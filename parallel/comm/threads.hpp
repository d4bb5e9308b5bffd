// Ranks as threads of one process: tests, parity, sanitizers, and ranks that share one GPU.
#pragma once

#include <functional>

#include "parallel/comm/backend.hpp"

namespace weft {

/// Runs body(world) on `ranks` threads and waits for all. When one throws, every wait of the others
/// is woken; the first error is rethrown. `on_error(rank)` is called in the failing thread, first
/// failure only, before the others are woken.
void run_ranks(int ranks, const std::function<void(World&)>& body,
               const std::function<void(int rank)>& on_error = {});

}  // namespace weft
