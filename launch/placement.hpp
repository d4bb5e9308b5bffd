// From train.device and train.comm to where the ranks of a run are.
#pragma once

#include "launch/config.hpp"
#include "launch/start_ranks.hpp"

namespace weft {

/// Decides what train.device and train.comm leave open, for a config whose mesh is resolved:
///   device auto   cuda where every rank has a GPU and the config can run on one, otherwise cpu
///   comm auto     of processes nccl where every rank has a GPU of its own, otherwise mpi, through
///                 the host; of the ranks of one process threads
/// and writes the device into the config. `host` is the world of processes, all of which call
/// together; null for ranks that this process starts. Throws Error(config) in one line for what the
/// build, this host or the config cannot: then on this rank, and perhaps not on others.
RankChoice place_ranks(Config& config, World* host);

/// Why a config cannot run on a GPU, in words that follow "train.device: "; empty when it can. Asks
/// nothing of the host.
std::string unfit_for_gpu(const Config& config);

/// Why the ranks of a config cannot talk over NCCL, as a whole line; empty when they can. NCCL
/// starts the transfers of a rank in one order over all groups. Two stages that send each other
/// outputs and gradients at once, two messages in a row, can each hold back the receive that the
/// other waits for; and the sum of a tied table, which the last stage begins long before the first,
/// was seen to hang with them.
std::string unfit_for_nccl(const Config& config);

}  // namespace weft
