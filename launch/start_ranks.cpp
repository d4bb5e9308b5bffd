#include "launch/start_ranks.hpp"

#include <algorithm>
#include <vector>

#include "launch/job.hpp"
#include "launch/report_error.hpp"
#include "parallel/comm/mpi.hpp"
#include "parallel/comm/nccl.hpp"
#include "parallel/comm/staged.hpp"
#include "parallel/comm/threads.hpp"
#include "src/core/cuda/stream.hpp"

namespace weft {
namespace {

/// The GPU of this process, one that others on this host may have too.
int shared_gpu() {
  const int gpus = cuda::device_count();
  WEFT_REQUIRE(gpus > 0, ExitCode::usage, "--device cuda: no GPU can be used here");
  return launched_local_rank() % gpus;
}

/// The rank that a launcher made of this process.
void be_rank(const RankChoice& choice, const std::function<void(World&)>& body) {
  MpiSession session;
  World& host = session.world();
  whereabouts() = {.rank = host.rank()};
  or_end_job([&] {
    const std::unique_ptr<World> on_gpu = make_gpu_world(choice, host);
    body(on_gpu ? *on_gpu : host);
  });
}

}  // namespace

void start_threads(const RankChoice& choice, const std::function<void(World&)>& body,
                   const std::function<void(int rank)>& on_error) {
  const bool cuda = choice.device == Device::cuda;
  const int gpus = choice.gpus > 0 ? choice.gpus : cuda::device_count();
  WEFT_REQUIRE(!cuda || (gpus > 0 && gpus <= cuda::device_count()), ExitCode::usage,
               "--device cuda: ", cuda::device_count(), " GPUs can be used here, not ",
               std::max(gpus, 1));
  const int ranks = choice.ranks > 0 ? choice.ranks : cuda ? gpus : 2;
  if (choice.comm == "nccl") {
    const auto on_gpu = [&](World& host) { body(*make_nccl_world(host, host.rank() % gpus)); };
    return run_ranks(ranks, on_gpu, on_error);
  }
  if (!cuda) return run_ranks(ranks, body, on_error);
  std::vector<int> places;
  for (int rank = 0; rank < ranks; ++rank) places.push_back(rank % gpus);
  run_ranks_on_gpus(places, body, on_error);
}

ExitCode run_threads(const RankChoice& choice, const std::function<void(World&)>& body) {
  ExitCode code = ExitCode::done;
  const auto report_error = [&](const Whereabouts& where) {
    const Failure failure = describe(std::current_exception());
    report(failure, where);
    code = failure.code;
  };
  try {
    start_threads(choice, body, [&](int) { report_error(whereabouts()); });
  } catch (...) {
    if (code == ExitCode::done) report_error({});  // no rank was started
  }
  return code;
}

void start_alone(Device device, const std::function<void(World&)>& body) {
  if (device == Device::cpu) return run_ranks(1, body);
  run_ranks_on_gpus({shared_gpu()}, body);
}

std::unique_ptr<World> make_gpu_world(const RankChoice& choice, World& host) {
  if (choice.device == Device::cpu) return nullptr;
  if (choice.comm == "nccl") return make_nccl_world(host, launched_local_rank());
  return make_staged_world(host, shared_gpu());
}

void start_ranks(const RankChoice& choice, const std::function<void(World&)>& body) {
  WEFT_REQUIRE(choice.comm != "nccl" || choice.device == Device::cuda, ExitCode::usage,
               "--comm nccl needs --device cuda");
  WEFT_REQUIRE(choice.comm != "mpi" || launched_by_mpi(), ExitCode::usage,
               "--comm mpi: start the ranks with mpirun -n P");
  if (choice.comm == "threads" || !launched_by_mpi()) return start_threads(choice, body);
  be_rank(choice, body);
}

}  // namespace weft
