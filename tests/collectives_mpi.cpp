// The collectives over MPI processes: mpirun -n P collectives_mpi [mismatch|nccl|staged]. With
// "mismatch" the last rank enters another operation than the rest, which must end the job with 86;
// with "nccl" every rank has a GPU; with "staged" the ranks share the host's GPUs. Leaves with 77
// where the GPUs for that are missing.
#include <algorithm>
#include <cstdio>
#include <string_view>
#include <vector>

#include "parallel/comm/mpi.hpp"
#include "parallel/comm/nccl.hpp"
#include "parallel/comm/staged.hpp"
#include "parallel/mesh.hpp"
#include "src/core/cuda/stream.hpp"
#include "tests/collectives_check.hpp"
#include "tests/testing.hpp"

namespace weft {
namespace {

constexpr int kSkipped = 77;

void enter_different_operations(World& world) {
  MeshShape shape;
  shape.along(Axis::sequence) = world.size();
  ProcessMesh mesh(world, shape, {}, /*strict=*/true);
  Communicator& comm = mesh.along(Axis::sequence);
  const auto stream = make_inline_stream();
  const Owned buffer = zeros(DType::f64, {8}), scratch = zeros(DType::f64, {8});
  stream->wait(comm.rank() + 1 == comm.size()
                   ? comm.all_gather(buffer, Cuts::even(8, comm.size()), {}, *stream)
                   : comm.all_reduce(buffer, scratch, {}, *stream));
}

/// Whether it holds on every rank.
bool everywhere(World& world, bool here) {
  const auto all = world.everyone("whether");
  std::vector<int32_t> each(all->size());
  each[all->rank()] = here;
  const int64_t dims[] = {all->size()};
  all->all_gather(Tensor::view(each.data(), DType::i32, Device::cpu, dims),
                  Cuts::even(all->size(), all->size()));
  return std::find(each.begin(), each.end(), 0) == each.end();
}

int run(World& world, std::string_view mode) {
  const int gpus = cuda::device_count();
  if (mode == "mismatch") {
    enter_different_operations(world);
  } else if (mode == "nccl") {
    if (!everywhere(world, has_nccl() && launched_local_rank() < gpus)) return kSkipped;
    check_collectives(*make_nccl_world(world, launched_local_rank()));
  } else if (mode == "staged") {
    if (gpus == 0) return kSkipped;
    check_collectives(*make_staged_world(world, launched_local_rank() % gpus));
  } else {
    check_collectives(world);
  }
  return 0;
}

}  // namespace
}  // namespace weft

int main(int argc, char** argv) {
  weft::MpiSession session;
  try {
    const int code = weft::run(session.world(), argc > 1 ? argv[1] : "");
    if (code != 0) std::fprintf(stderr, "skipped: too few GPUs, or no NCCL\n");
    return code;
  } catch (const weft::Error& error) {
    std::fprintf(stderr, "rank %d: %s\n", session.world().rank(), error.what());
    weft::MpiSession::abort(static_cast<int>(error.code()));
  }
}
