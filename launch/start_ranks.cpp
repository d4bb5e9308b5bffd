#include "launch/start_ranks.hpp"

#include <vector>

#include "launch/report_error.hpp"
#include "parallel/comm/mpi.hpp"
#include "parallel/comm/nccl.hpp"
#include "parallel/comm/staged.hpp"
#include "parallel/comm/threads.hpp"
#include "src/core/cuda/stream.hpp"

namespace weft {
namespace {

void start_threads(const RankChoice& choice, const std::function<void(World&)>& body) {
  const bool cuda = choice.device == Device::cuda;
  const int gpus = choice.gpus > 0 ? choice.gpus : cuda::device_count();
  WEFT_REQUIRE(!cuda || (gpus > 0 && gpus <= cuda::device_count()), ExitCode::usage,
               "--device cuda: ", cuda::device_count(), " GPUs can be used here, not ",
               std::max(gpus, 1));
  const int ranks = choice.ranks > 0 ? choice.ranks : cuda ? gpus : 2;
  if (choice.comm == "nccl") {
    return run_ranks(ranks, [&](World& host) { body(*make_nccl_world(host, host.rank() % gpus)); });
  }
  if (!cuda) return run_ranks(ranks, body);
  std::vector<int> places;
  for (int rank = 0; rank < ranks; ++rank) places.push_back(rank % gpus);
  run_ranks_on_gpus(places, body);
}

/// The rank that a launcher made of this process.
void be_rank(const RankChoice& choice, const std::function<void(World&)>& body) {
  MpiSession session;
  World& host = session.world();
  whereabouts() = {.rank = host.rank()};
  try {
    if (choice.device == Device::cpu) return body(host);
    const int gpus = cuda::device_count();
    WEFT_REQUIRE(gpus > 0, ExitCode::usage, "--device cuda: no GPU can be used here");
    if (choice.comm == "nccl") return body(*make_nccl_world(host, launched_local_rank()));
    body(*make_staged_world(host, launched_local_rank() % gpus));
  } catch (...) {
    const Failure failure = describe(std::current_exception());
    report(failure, whereabouts());
    MpiSession::abort(static_cast<int>(failure.code));
  }
}

}  // namespace

void start_ranks(const RankChoice& choice, const std::function<void(World&)>& body) {
  WEFT_REQUIRE(choice.comm != "nccl" || choice.device == Device::cuda, ExitCode::usage,
               "--comm nccl needs --device cuda");
  WEFT_REQUIRE(choice.comm != "mpi" || launched_by_mpi(), ExitCode::usage,
               "--comm mpi: start the ranks with mpirun -n P");
  if (choice.comm == "threads" || !launched_by_mpi()) return start_threads(choice, body);
  be_rank(choice, body);
}

}  // namespace weft
