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

}  // namespace weft
