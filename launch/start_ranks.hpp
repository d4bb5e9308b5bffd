// From --comm and --device to ranks.
#pragma once

#include <functional>
#include <memory>
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

/// For set_wait_deadline() where the ranks are threads that share cores or a GPU: they wait for one
/// another as long as a step takes, and none of them can be lost without the others.
inline constexpr double kLongestWait = 86400;  // seconds

/// Calls body(world) once a rank: threads of this process, or the one rank that this process is
/// under mpirun and srun. There an error on any rank is reported and ends the job, without return.
///   threads, cpu or cuda   threads of this process; on GPUs they copy from device to device
///   nccl, cuda             a GPU for every rank; processes, or without a launcher threads
///   mpi, cpu or cuda       processes; on GPUs messages go through the host
/// Throws Error(usage) for what this build or this host cannot.
void start_ranks(const RankChoice& choice, const std::function<void(World&)>& body);

/// The first of these alone, with on_error as run_ranks has it.
void start_threads(const RankChoice& choice, const std::function<void(World&)>& body,
                   const std::function<void(int rank)>& on_error = {});

/// start_threads, where the first error of a rank is reported with the step at which it stood, and
/// at once: a peer may be inside a call that nothing wakes. Returns its code, or ExitCode::done.
ExitCode run_threads(const RankChoice& choice, const std::function<void(World&)>& body);

/// Calls body(world) for one rank that is a job of its own, on the GPU that this process has among
/// those of its host where `device` is cuda.
void start_alone(Device device, const std::function<void(World&)>& body);

/// The ranks of `host`, processes on the CPU, on the device of `choice`: null where that is the
/// CPU. `host` must outlive the result. Needs no peer.
std::unique_ptr<World> make_gpu_world(const RankChoice& choice, World& host);

}  // namespace weft
