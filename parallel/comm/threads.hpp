// Ranks as threads of one process: tests, parity, sanitizers, and ranks that share one GPU.
#pragma once

#include <functional>
#include <vector>

#include "parallel/comm/backend.hpp"

namespace weft {

/// Runs body(world) on `ranks` threads and waits for all. When one throws, every wait of the others
/// is woken; the first error is rethrown. `on_error(rank)` is called in the failing thread, first
/// failure only, before the others are woken.
void run_ranks(int ranks, const std::function<void(World&)>& body,
               const std::function<void(int rank)>& on_error = {});

/// The same with ranks that compute on GPUs: rank p on gpus[p], and any number of them share one.
/// Tensors that travel are on the GPU of their rank. Messages are copies on the receiver's stream,
/// behind an event of the sender's; a call waits for the calls of its peers and never for a GPU.
void run_ranks_on_gpus(const std::vector<int>& gpus, const std::function<void(World&)>& body,
                       const std::function<void(int rank)>& on_error = {});

}  // namespace weft
