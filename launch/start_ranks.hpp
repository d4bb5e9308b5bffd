// From --comm and --device to ranks.
#pragma once

#include <functional>
#include <string>

#include "parallel/comm/backend.hpp"

namespace weft {

/// What carries messages, where tensors are, and how many ranks a process starts by itself.
struct RankChoice {
  std::string comm;  // threads, mpi or nccl
  Device device = Device::cpu;
  int ranks = 0;  // of one process; 0: a rank for every GPU, two on the CPU
  int gpus = 0;   // that ranks of one process share in turn; 0: all
};

/// Calls body(world) once a rank: threads of this process, or the one rank that this process is
/// under mpirun and srun. There an error on any rank is reported and ends the job, without return.
///   threads, cpu or cuda   threads of this process; on GPUs they copy from device to device
///   nccl, cuda             a GPU for every rank; processes, or without a launcher threads
///   mpi, cpu or cuda       processes; on GPUs messages go through the host
/// Throws Error(usage) for what this build or this host cannot.
void start_ranks(const RankChoice& choice, const std::function<void(World&)>& body);

}  // namespace weft
