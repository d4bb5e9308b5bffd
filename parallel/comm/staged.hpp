// Ranks on GPUs whose messages go through the host: processes that share a card, or have no NCCL.
#pragma once

#include <memory>

#include "parallel/comm/backend.hpp"

namespace weft {

/// The ranks of `inner`, on the CPU, with tensors on GPU `gpu`; several may name one. A message is
/// copied to page-locked memory, carried by `inner`, and copied to the receiver's GPU. Every call
/// waits once for its own GPU, which Backend::host_waits() counts. `inner` must outlive the result.
std::unique_ptr<World> make_staged_world(World& inner, int gpu);

}  // namespace weft
